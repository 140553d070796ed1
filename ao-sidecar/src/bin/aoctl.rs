//! `aoctl`: asks a running sidecar how it is, and has it change what it does.

use std::alloc::System;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use ao_sidecar::cli::aoctl::{
    Arguments, Chains, Command, Config, Events, Global, Keys, Peers, Rollover,
};
use ao_sidecar::cli::arguments::KeySettings;
use ao_sidecar::cli::manual;
use ao_sidecar::client::{
    self, Change, ClientError, Complaint, Format, Paint, Question, Secret, Sidecar, Watch,
};
use clap::{CommandFactory, Parser};
use nix::sys::prctl;
use zeroizing_alloc::ZeroAlloc;

/// Wipes memory as it is freed, so that no copy of a secret outlives its use.
#[global_allocator]
static ALLOCATOR: ZeroAlloc<System> = ZeroAlloc(System);

fn main() -> ExitCode {
    // Keeps secrets out of core files. Where it fails, they are as safe as in any other program.
    let _ = prctl::set_dumpable(false);
    match run(Arguments::parse()) {
        Ok(code) => ExitCode::from(code),
        // The reader has seen enough, as in `aoctl sessions | head`.
        Err(ClientError::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
            ExitCode::SUCCESS
        }
        Err(error) => {
            // Without stderr the exit code has to do.
            let _ = writeln!(io::stderr(), "aoctl: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}

fn run(Arguments { global, command }: Arguments) -> Result<u8, ClientError> {
    let question = match command {
        Command::Completions { shell } => return completions(shell),
        Command::Man { folder } => {
            manual::write(&folder)?;
            return Ok(0);
        }
        Command::Events(events) => {
            let sidecar = Sidecar::named(&global, client::environment)?;
            let watch = watch(events);
            client::watch(&sidecar, watch, format(&global), &mut io::stdout().lock())?;
            return Ok(0);
        }
        Command::Doctor(doctor) => {
            let sidecar = Sidecar::named(&global, client::environment)?;
            let complaint = Complaint {
                peer: doctor.peer,
                listen: doctor.listen,
            };
            let diagnosis = client::diagnose(&sidecar, complaint, &doctor.config)?;
            diagnosis.write(format(&global), &mut io::stdout().lock())?;
            return Ok(diagnosis.exit_code());
        }
        Command::Top { interval } => {
            if global.json {
                return Err(ClientError::Usage(
                    "top has no JSON; see status --json".to_owned(),
                ));
            }
            let sidecar = Sidecar::named(&global, client::environment)?;
            client::top(&sidecar, interval, Paint::new(global.color, &io::stdout()))?;
            return Ok(0);
        }
        Command::Status => Question::Status,
        Command::Sessions => Question::Sessions,
        Command::Counters => Question::Counters,
        Command::Identity => Question::Identity,
        Command::Peers { action } => peers(action),
        Command::Chains { action } => chains(action)?,
        Command::Keys(keys) => self::keys(keys)?,
        Command::Rollover(rollover) => self::rollover(rollover),
        Command::Config(config) => self::config(config)?,
    };
    let sidecar = Sidecar::named(&global, client::environment)?;
    let answer = client::ask(&sidecar, question)?;
    answer.write(format(&global), &mut io::stdout().lock())?;
    Ok(answer.exit_code())
}

fn format(global: &Global) -> Format {
    match global.json {
        true => Format::Json,
        false => Format::Text(Paint::new(global.color, &io::stdout())),
    }
}

fn completions(shell: clap_complete::Shell) -> Result<u8, ClientError> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "aoctl", &mut script);
    io::stdout().lock().write_all(&script)?;
    Ok(0)
}

fn watch(events: Events) -> Watch {
    Watch {
        after: events.after,
        log: events.log,
        peer: events.peer,
        follow: events.follow,
    }
}

fn peers(action: Option<Peers>) -> Question {
    change(match action {
        None | Some(Peers::List) => return Question::Peers,
        Some(Peers::Create {
            name,
            settings,
            replace_sessions,
        }) => Change::CreatePeer {
            name,
            settings,
            replace_sessions,
        },
        Some(Peers::Update {
            name,
            settings,
            replace_sessions,
        }) => Change::UpdatePeer {
            name,
            settings,
            replace_sessions,
        },
        Some(Peers::Delete { name }) => Change::DeletePeer(name),
    })
}

fn chains(action: Option<Chains>) -> Result<Question, ClientError> {
    Ok(change(match action {
        None => return Ok(Question::Chains(None)),
        Some(Chains::List { name }) => return Ok(Question::Chains(name)),
        Some(Chains::Create { name, rules, key }) => Change::CreateChain {
            name,
            rules,
            secret: secret(&key)?,
            key,
        },
        Some(Chains::Update { name, rules }) => Change::UpdateChain { name, rules },
        Some(Chains::Delete { name }) => Change::DeleteChain(name),
    }))
}

fn keys(keys: Keys) -> Result<Question, ClientError> {
    Ok(change(match keys {
        Keys::List { peer } => return Ok(Question::Keys(peer)),
        Keys::Add { chain, key } => Change::AddKey {
            chain,
            secret: secret(&key)?,
            key,
        },
        Keys::Change { chain, key } => Change::ChangeKey {
            chain,
            secret: secret(&key)?,
            key,
        },
        Keys::Delete {
            chain,
            send_id,
            recv_id,
        } => Change::DeleteKey {
            chain,
            send_id,
            recv_id,
        },
    }))
}

fn change(change: Change) -> Question {
    Question::Change(Box::new(change))
}

fn secret(key: &KeySettings) -> Result<Option<Secret>, ClientError> {
    key.secret_file.as_deref().map(client::secret).transpose()
}

fn rollover(rollover: Rollover) -> Question {
    match rollover {
        Rollover::Status { peer } => Question::Rollover(peer),
        Rollover::Start { compromised, peer } => Question::StartRollover { peer, compromised },
        Rollover::Abort { peer } => Question::AbortRollover(peer),
        Rollover::Force { peer } => Question::ForceRollover(peer),
    }
}

fn config(config: Config) -> Result<Question, ClientError> {
    Ok(match config {
        Config::Show => Question::Config,
        Config::Check { file } => {
            let text = file
                .as_deref()
                .map(|file: &Path| client::configuration(file));
            Question::CheckConfig(text.transpose()?)
        }
        Config::Diff => Question::DiffConfig,
        Config::Reload { replace_sessions } => Question::ReloadConfig { replace_sessions },
    })
}
