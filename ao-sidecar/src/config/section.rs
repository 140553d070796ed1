//! Tables of the document, read key by key.
//!
//! Serde would stop at the first error, and its messages repeat values ("invalid type: string
//! \"…\""), which may be secrets. Reading the spanned document directly tells every problem with
//! its place, and repeats only what is known to be harmless.

use std::borrow::Cow;
use std::ops::{Range, RangeInclusive};

use toml::Spanned;
use toml::de::{DeInteger, DeTable, DeValue};

use super::problem::{Place, Problems};

/// The keys a kind of table may have.
pub(super) struct Schema {
    /// How messages call the table.
    pub(super) title: &'static str,
    /// Keys that must be there.
    pub(super) required: &'static [&'static str],
    /// Keys that may be there.
    pub(super) optional: &'static [&'static str],
}

/// One table. Getters answer nothing when the key is absent, and also when its value is wrong:
/// then the problem is already noted, and the value given in its place does not matter.
pub(super) struct Section<'p, 'i> {
    problems: &'p Problems<'p>,
    table: DeTable<'i>,
    span: Range<usize>,
}

impl<'p, 'i> Section<'p, 'i> {
    /// Reads `table`, noting keys that are unknown or missing.
    pub(super) fn new(
        schema: &Schema,
        table: DeTable<'i>,
        span: Range<usize>,
        problems: &'p Problems<'p>,
    ) -> Self {
        let Schema {
            title,
            required,
            optional,
        } = schema;
        for key in table.keys() {
            let known = || required.iter().chain(*optional).copied();
            if !known().any(|name| name == key.get_ref()) {
                let hint = suggest(key.get_ref(), known());
                problems.add(
                    &key.span(),
                    format!(
                        "unknown key `{}` in {title}; {hint}",
                        key.get_ref().escape_debug()
                    ),
                );
            }
        }
        for key in *required {
            if !table.contains_key(*key) {
                problems.add(&span, format!("{title} has no `{key}`; add it"));
            }
        }
        Self {
            problems,
            table,
            span,
        }
    }

    /// What problems with it are noted in.
    pub(super) fn problems(&self) -> &'p Problems<'p> {
        self.problems
    }

    /// Where the table begins.
    pub(super) fn place(&self) -> Place<'p> {
        Place {
            problems: self.problems,
            span: self.span.clone(),
        }
    }

    /// Where the value of `key` stands, or the table when it is absent.
    pub(super) fn place_of(&self, key: &str) -> Place<'p> {
        Place {
            problems: self.problems,
            span: self.span_of(key),
        }
    }

    fn span_of(&self, key: &str) -> Range<usize> {
        self.table
            .get(key)
            .map_or_else(|| self.span.clone(), Spanned::span)
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    pub(super) fn is_text(&self, key: &str) -> bool {
        self.table
            .get(key)
            .is_some_and(|value| value.get_ref().is_str())
    }

    /// Notes a problem with the value of `key`.
    pub(super) fn problem(&self, key: &str, text: impl Into<String>) {
        self.problems.add(&self.span_of(key), text);
    }

    /// Notes a problem with a part of a value.
    pub(super) fn problem_at(&self, span: &Range<usize>, text: impl Into<String>) {
        self.problems.add(span, text);
    }

    /// A string. Only copied if it was written with escapes.
    pub(super) fn text(&self, key: &str) -> Option<&str> {
        match self.table.get(key)?.get_ref() {
            DeValue::String(text) => Some(text),
            other => self.wrong_type(key, "a string", other),
        }
    }

    /// A string that is parsed; what it says may be repeated in the message `parse` gives.
    pub(super) fn parsed<T>(
        &self,
        key: &str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        parse(self.text(key)?)
            .map_err(|text| self.problem(key, text))
            .ok()
    }

    /// Strings with their places: one, or an array of them. `wanted` says in messages what they
    /// should be.
    pub(super) fn texts(&self, key: &str, wanted: &str) -> Option<Vec<(String, Range<usize>)>> {
        let value = self.table.get(key)?;
        let one = |item: &Spanned<DeValue<'i>>| match item.get_ref() {
            DeValue::String(text) => Some((text.to_string(), item.span())),
            other => self.wrong_type(key, wanted, other),
        };
        match value.get_ref() {
            DeValue::Array(items) => items.iter().map(one).collect(),
            _ => Some(vec![one(value)?]),
        }
    }

    /// A value of any type.
    pub(super) fn value(&self, key: &str) -> Option<&DeValue<'i>> {
        self.table.get(key).map(Spanned::get_ref)
    }

    pub(super) fn boolean(&self, key: &str) -> Option<bool> {
        match self.table.get(key)?.get_ref() {
            DeValue::Boolean(value) => Some(*value),
            other => self.wrong_type(key, "true or false", other),
        }
    }

    /// An integer within bounds.
    pub(super) fn integer<T>(&self, key: &str, bounds: RangeInclusive<T>) -> Option<T>
    where
        T: TryFrom<i128> + Into<i128> + Copy,
    {
        let (low, high): (i128, i128) = ((*bounds.start()).into(), (*bounds.end()).into());
        match self.table.get(key)?.get_ref() {
            DeValue::Integer(written) => {
                let value = value_of(written).filter(|value| (low..=high).contains(value));
                let value = value.and_then(|value| T::try_from(value).ok());
                if value.is_none() {
                    self.problem(
                        key,
                        format!("`{key}` is out of range; write {low} to {high}"),
                    );
                }
                value
            }
            other => self.wrong_type(key, &format!("an integer from {low} to {high}"), other),
        }
    }

    /// A string that is one of the given names.
    pub(super) fn choice<T: Copy>(&self, key: &str, names: &[(&str, T)]) -> Option<T> {
        self.parsed(key, |written| {
            names
                .iter()
                .find(|(name, _)| *name == written)
                .map(|&(_, value)| value)
                .ok_or_else(|| {
                    let hint = suggest(written, names.iter().map(|&(name, _)| name));
                    format!("unknown {key} {written:?}; {hint}")
                })
        })
    }

    /// The table under `key`.
    pub(super) fn table(&mut self, key: &str, schema: &Schema) -> Option<Section<'p, 'i>> {
        let value = self.table.remove(key)?;
        self.section(schema, value, key)
    }

    /// The tables of the array under `key`.
    pub(super) fn tables(&mut self, key: &str, schema: &Schema) -> Vec<Section<'p, 'i>> {
        let Some(value) = self.table.remove(key) else {
            return Vec::new();
        };
        let span = value.span();
        match value.into_inner() {
            DeValue::Array(array) => array
                .into_iter()
                .filter_map(|item| self.section(schema, item, key))
                .collect(),
            _ => {
                self.problems
                    .add(&span, format!("write {} instead of `{key}`", schema.title));
                Vec::new()
            }
        }
    }

    fn section(
        &self,
        schema: &Schema,
        value: Spanned<DeValue<'i>>,
        key: &str,
    ) -> Option<Section<'p, 'i>> {
        let span = value.span();
        if let DeValue::Table(table) = value.into_inner() {
            Some(Section::new(schema, table, span, self.problems))
        } else {
            self.problems.add(
                &span,
                format!("`{key}` is no table; write {}", schema.title),
            );
            None
        }
    }

    /// Notes that the value of `key`, or a part of it, has the wrong type.
    pub(super) fn wrong_type<T>(&self, key: &str, wanted: &str, found: &DeValue<'_>) -> Option<T> {
        let found = found.type_str();
        self.problem(key, format!("`{key}` is of type {found}; write {wanted}"));
        None
    }
}

fn value_of(integer: &DeInteger<'_>) -> Option<i128> {
    i128::from_str_radix(integer.as_str(), integer.radix()).ok()
}

/// What to write instead of `written`: the nearest known name, or all of them.
pub(super) fn suggest<'n>(written: &str, known: impl Iterator<Item = &'n str>) -> String {
    let known: Vec<&str> = known.collect();
    let distance = |name: &str| strsim::damerau_levenshtein(&written.to_lowercase(), name);
    let near = known
        .iter()
        .map(|name| (distance(name), name))
        .filter(|&(distance, name)| distance <= 3 && 2 * distance <= name.len())
        .min_by_key(|&(distance, _)| distance);
    match near {
        Some((_, name)) => format!("write `{name}`"),
        None if known.is_empty() => "there is none to name".to_owned(),
        None => {
            let all: Vec<Cow<'_, str>> = known
                .iter()
                .map(|name| format!("`{name}`").into())
                .collect();
            format!("write one of {}", all.join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::suggest;

    #[test]
    fn the_nearest_name_is_suggested() {
        let known = || ["address", "key_chain", "port"].into_iter();
        assert_eq!(suggest("adress", known()), "write `address`");
        assert_eq!(suggest("keychain", known()), "write `key_chain`");
        assert_eq!(suggest("Prot", known()), "write `port`");
        assert_eq!(
            suggest("x", known()),
            "write one of `address`, `key_chain`, `port`"
        );
    }
}
