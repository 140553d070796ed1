//! The page that is seen.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Cell, Paragraph, Row as TableRow, Table};

use super::super::output::{Paint, Tone};
use super::super::table::{printable, tone_of};
use super::super::time::duration;
use super::view::{Row, View};

/// Alarms that are shown at once.
const ALARMS: usize = 3;

/// Events that are shown, with their heading.
const EVENT_LINES: u16 = 6;

pub(super) fn draw(view: &View, paint: Paint, frame: &mut Frame<'_>) {
    let page = Page { view, paint };
    let alarms = page.alarms();
    let alarm_lines = u16::try_from(alarms.len()).unwrap_or(0);
    let [head, alarm, table, events, keys] = Layout::vertical([
        Constraint::Length(2),
        Constraint::Length(alarm_lines),
        Constraint::Min(3),
        Constraint::Length(EVENT_LINES),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    frame.render_widget(Paragraph::new(page.head()), head);
    frame.render_widget(Paragraph::new(alarms), alarm);
    page.table(table, frame);
    page.events(events, frame);
    let keys_line = "q quit   arrows scroll   Tab peers/sessions   s sort   p pause";
    frame.render_widget(Line::styled(keys_line, page.style(Tone::Plain)), keys);
}

struct Page<'v> {
    view: &'v View,
    paint: Paint,
}

impl Page<'_> {
    fn style(&self, tone: Tone) -> Style {
        let plain = Style::new();
        match (tone, self.paint.has_colours()) {
            (Tone::Plain, _) => plain,
            (Tone::Heading, _) | (Tone::Bad, false) => plain.add_modifier(Modifier::BOLD),
            (Tone::Bad, true) => plain.fg(Color::Red).add_modifier(Modifier::BOLD),
            (Tone::Doubtful, true) => plain.fg(Color::Yellow),
            (Tone::Good, true) => plain.fg(Color::Green),
            (Tone::Doubtful | Tone::Good, false) => plain,
        }
    }

    /// The sidecar, then its peers and rates.
    fn head(&self) -> Vec<Line<'_>> {
        let view = self.view;
        let mut first = match &view.status {
            Some(status) => vec![Span::styled(
                format!(
                    "ao-sidecar {}  up {}  {}",
                    printable(&status.version),
                    duration(status.uptime_seconds),
                    printable(&status.datapath)
                ),
                self.style(Tone::Heading),
            )],
            None => vec![Span::styled(
                format!("ao-sidecar on {}", printable(&view.sidecar)),
                self.style(Tone::Heading),
            )],
        };
        if let Some(reason) = &view.lost {
            let lost = format!("  GONE, trying again: {}", printable(reason));
            first.push(Span::styled(lost, self.style(Tone::Bad)));
        }
        if view.paused {
            first.push(Span::styled("  PAUSED", self.style(Tone::Doubtful)));
        }
        vec![Line::from(first), Line::from(self.totals())]
    }

    fn totals(&self) -> String {
        let view = self.view;
        let Some(status) = &view.status else {
            return String::new();
        };
        let in_state = |state| view.peers.iter().filter(|peer| peer.state == state).count();
        let total = |rate: fn(&Row) -> Option<f64>| {
            let known: Vec<f64> = view.peers.iter().filter_map(rate).collect();
            rate_text((!known.is_empty()).then(|| known.iter().sum()))
        };
        let waiting: u64 = status
            .queues
            .iter()
            .map(|queue| u64::from(queue.waiting))
            .sum();
        let lost: u64 = status
            .queues
            .iter()
            .map(|queue| queue.overruns.saturating_add(queue.dropped))
            .fold(0, u64::saturating_add);
        format!(
            "{} peers: {} established, {} down, {} blocked  sessions {}  good/s {}  refused/s {}  \
             sent/s {}  queued {waiting}, lost {lost}",
            view.peers.len(),
            in_state("established"),
            in_state("down"),
            in_state("blocked"),
            view.sessions.len(),
            total(|peer| peer.rates.good),
            total(|peer| peer.rates.refused),
            total(|peer| peer.rates.sent),
        )
    }

    fn alarms(&self) -> Vec<Line<'_>> {
        let alarms = self.view.status.iter().flat_map(|status| &status.alarms);
        let text = |alarm: &grpc_api::v1::Alarm| match alarm.peer.is_empty() {
            true => format!("ALARM {}", printable(&alarm.text)),
            false => format!(
                "ALARM {}: {}",
                printable(&alarm.peer),
                printable(&alarm.text)
            ),
        };
        let mut lines: Vec<String> = alarms.map(text).collect();
        if lines.len() > ALARMS {
            let more = lines.len() - (ALARMS - 1);
            lines.truncate(ALARMS - 1);
            lines.push(format!("and {more} more alarms: aoctl status"));
        }
        let styled = |line| Line::styled(line, self.style(Tone::Bad));
        lines.into_iter().map(styled).collect()
    }

    fn table(&self, area: Rect, frame: &mut Frame<'_>) {
        let view = self.view;
        let rows = view.rows();
        let (what, headings) = match view.of_sessions {
            true => ("sessions", ["PEER", "LOCAL REMOTE", "STATE", "KEYS"]),
            false => ("peers", ["PEER", "ADDRESS", "STATE", "SESSIONS"]),
        };
        let title = match rows.is_empty() {
            true => format!(" no {what} "),
            false => format!(
                " {what} {}-{} of {}, by {} ",
                view.scrolled + 1,
                rows.len()
                    .min(view.scrolled + usize::from(area.height.saturating_sub(2))),
                rows.len(),
                view.order.name()
            ),
        };
        let [peer, ends, state, detail] = headings;
        let heading = TableRow::new([
            Cell::from(peer),
            Cell::from(ends),
            Cell::from(state),
            number(detail),
            number("GOOD/S"),
            number("REFUSED/S"),
            number("SENT/S"),
            number("REFUSED"),
            Cell::from("DATAPATH"),
        ]);
        let names = rows.iter().map(|row| row.peer.chars().count());
        let longest = names.max().unwrap_or(0).clamp(4, 20);
        let widths = [
            Constraint::Length(u16::try_from(longest).unwrap_or(20)),
            Constraint::Fill(1),
            Constraint::Length(11),
            Constraint::Length(8),
            Constraint::Length(6),
            Constraint::Length(9),
            Constraint::Length(6),
            Constraint::Length(8),
            Constraint::Length(9),
        ];
        let shown = rows.iter().skip(view.scrolled);
        let table = Table::new(shown.map(|row| self.row(row)), widths)
            .header(heading.style(self.style(Tone::Heading)))
            .block(Block::new().borders(Borders::TOP).title(title));
        frame.render_widget(table, area);
    }

    fn row<'r>(&self, row: &'r Row) -> TableRow<'r> {
        let refusing = row.rates.refused.is_some_and(|rate| rate > 0.0);
        let refused_tone = if refusing { Tone::Bad } else { Tone::Plain };
        TableRow::new([
            Cell::from(printable(&row.peer)),
            Cell::from(printable(&row.ends)),
            Cell::from(row.state).style(self.style(tone_of(row.state))),
            number(row.detail.as_str()),
            number(rate_text(row.rates.good)),
            number(rate_text(row.rates.refused)).style(self.style(refused_tone)),
            number(rate_text(row.rates.sent)),
            number(row.refused.to_string()),
            Cell::from(printable(&row.datapath)),
        ])
    }

    fn events(&self, area: Rect, frame: &mut Frame<'_>) {
        let lines = usize::from(area.height.saturating_sub(1));
        let events = &self.view.events;
        let skipped = events.len().saturating_sub(lines);
        let line = |(text, tone): (String, Tone)| Line::styled(text, self.style(tone));
        let shown: Vec<Line<'_>> = events
            .iter()
            .skip(skipped)
            .map(|event| line(event.short()))
            .collect();
        let heading = if events.is_empty() {
            " no events "
        } else {
            " events "
        };
        let block = Block::new().borders(Borders::TOP).title(heading);
        frame.render_widget(Paragraph::new(shown).block(block), area);
    }
}

/// A cell with its text at the right.
fn number<'t>(text: impl Into<Line<'t>>) -> Cell<'t> {
    Cell::from(text.into().right_aligned())
}

/// A rate in few characters.
fn rate_text(rate: Option<f64>) -> String {
    match rate {
        None => "-".to_owned(),
        Some(rate) if rate < 9.95 => format!("{rate:.1}"),
        Some(rate) if rate < 99_999.5 => format!("{rate:.0}"),
        Some(rate) if rate < 999_500.0 => format!("{:.0}k", rate / 1e3),
        Some(rate) => format!("{:.1}M", rate / 1e6),
    }
}
