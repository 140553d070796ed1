//! A configuration that is seen and changed by API: answers are fixed, changes are noted.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use grpc_api::operator::administration::{
    Administration, Audit, Caller, ChainKeyReport, Change, ChangeKind, Changed, ConfigChange,
    ConfigProblem, ConfigReport, Finding, FindingSeverity, KeyChainReport, KeyChainSpec, KeySpec,
    Origin, Validation,
};
use grpc_api::operator::{ControlError, KeyState, Lifetime};
use zeroize::Zeroizing;

/// Answers with what is set, and notes what it was asked for.
#[derive(Default)]
pub(crate) struct Fixed {
    /// What a reload would change, and does.
    pub(crate) changed: Mutex<Changed>,
    /// What a diagnosis finds.
    pub(crate) findings: Mutex<Vec<Finding>>,
    /// What it was asked to do, in words.
    pub(crate) asked: Mutex<Vec<String>>,
}

impl Fixed {
    fn note(&self, what: String) {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.push(what);
    }

    /// What it was last asked to do.
    pub(crate) fn last(&self) -> String {
        self.asked.lock().unwrap().last().cloned().unwrap()
    }
}

/// The text that a secret is recognised by where it is not replaced.
pub(crate) const SECRET: &str = "never-to-be-seen-again";

impl Administration for Fixed {
    async fn key_chains(&self) -> Result<Vec<KeyChainReport>, ControlError> {
        Ok(vec![in_file(), by_api()])
    }

    async fn config(&self) -> Result<ConfigReport, ControlError> {
        Ok(ConfigReport {
            toml: TOML.into(),
            file: "/etc/ao-sidecar/config.toml".into(),
            loaded_at: moment(0),
            api_made: vec!["key chain lab".into(), "peer as64502".into()],
        })
    }

    async fn validate(&self, toml: Option<Zeroizing<String>>) -> Result<Validation, ControlError> {
        let problem = |place, text: &str| ConfigProblem {
            place,
            text: text.into(),
        };
        let warnings = vec![problem(None, "key chain \"ix\" ends in 3 days; add a key")];
        let Some(text) = toml else {
            return Ok(Validation {
                problems: Vec::new(),
                warnings,
            });
        };
        self.note(format!("validate {} octets", text.len()));
        Ok(Validation {
            problems: vec![
                problem(Some((9, 15)), "secret file x.key cannot be read"),
                problem(Some((13, 1)), "unknown key `adress`; write `address`"),
            ],
            warnings,
        })
    }

    async fn diff(&self) -> Result<Changed, ControlError> {
        Ok(self.changed.lock().unwrap().clone())
    }

    async fn reload(&self, _: &Caller, replace: bool) -> Result<Changed, ControlError> {
        self.note(format!("reload, replace sessions: {replace}"));
        let changed = self.changed.lock().unwrap().clone();
        match changed.changes.iter().find(|change| change.needs_restart) {
            Some(change) => Err(ControlError::Refused(format!(
                "{} needs a restart; nothing has changed",
                change.subject
            ))),
            None => Ok(changed),
        }
    }

    async fn change(&self, caller: &Caller, change: Change) -> Result<Changed, ControlError> {
        // A secret is noted by what it is, so that tests see that it came through.
        let secret = match &change {
            Change::PutKey { key, .. } => key.secret.as_ref(),
            Change::CreateKeyChain { keys, .. } => keys.first().and_then(|key| key.secret.as_ref()),
            _ => None,
        };
        let secret = secret.map(|secret| String::from_utf8_lossy(&secret.0).into_owned());
        self.note(format!("{}: {change:?} {secret:?}", caller.role.as_str()));
        match &change {
            Change::PutPeer { peer, .. } if peer.name == "ix" => Err(ControlError::Refused(
                "peer \"ix\" is in /etc/ao-sidecar/config.toml:12: change it there".into(),
            )),
            Change::DeletePeer { name } if name != "as64502" => Err(ControlError::NotFound(
                format!("there is no peer {name:?} made by API; is \"as64502\" meant?"),
            )),
            _ => {
                let mut warnings = vec!["its chain has not begun".into()];
                warnings.extend(self.changed.lock().unwrap().warnings.clone());
                Ok(Changed {
                    changes: vec![differs("peer as64502", ChangeKind::Changed)],
                    warnings,
                })
            }
        }
    }

    async fn audit(&self, _: &Caller, _: String) -> Result<Audit, ControlError> {
        Ok(Audit::new(|_| ()))
    }

    async fn diagnose(
        &self,
        peer: Option<&str>,
        listen: Duration,
    ) -> Result<Vec<Finding>, ControlError> {
        self.note(format!("diagnose {peer:?} for {listen:?}"));
        Ok(self.findings.lock().unwrap().clone())
    }
}

fn moment(hours: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_798_156_800 + hours * 3600)
}

pub(crate) fn differs(subject: &str, kind: ChangeKind) -> ConfigChange {
    ConfigChange {
        subject: subject.into(),
        kind,
        details: vec!["ttl_min 0 becomes 254".into()],
        effect: String::new(),
        needs_restart: false,
    }
}

pub(crate) fn finding(code: &'static str, severity: FindingSeverity, peer: &str) -> Finding {
    Finding {
        code,
        severity,
        peer: Some(peer.into()).filter(|_| !peer.is_empty()),
        seen: format!("what was seen of {code}"),
        matters: String::new(),
        remedy: String::new(),
    }
}

const TOML: &str = r#"datapath = "auto"

[[key_chain]] # made by API
name = "lab"

[[key_chain.key]]
send_id = 1
recv_id = 2
algorithm = "aes-128-cmac-96"
# secret

[[peer]] # made by API
name = "as64502"
address = "10.0.0.2"
key_chain = "lab"
ports = "179-180"
vrf = "blue"
ttl_min = 1
"#;

fn key(send_id: u8, state: KeyState, origin: Origin) -> ChainKeyReport {
    ChainKeyReport {
        key: KeySpec {
            send_id,
            recv_id: send_id + 1,
            algorithm: "aes-128-cmac-96".into(),
            include_tcp_options: send_id != 1,
            secret: None,
            send: Lifetime {
                start: Some(moment(0)),
                end: None,
            },
            accept: None,
        },
        origin,
        state,
    }
}

fn in_file() -> KeyChainReport {
    KeyChainReport {
        chain: KeyChainSpec {
            name: "transit".into(),
            tolerance: Some(Duration::from_secs(300)),
            allow_gaps: false,
            on_expiry: Some("close".into()),
        },
        origin: Origin::File(7),
        keys: vec![
            key(1, KeyState::Active, Origin::File(11)),
            key(3, KeyState::Pending, Origin::Api),
        ],
        peers: ["as64502", "ix"].map(Into::into).into(),
    }
}

fn by_api() -> KeyChainReport {
    KeyChainReport {
        chain: KeyChainSpec {
            name: "lab".into(),
            allow_gaps: true,
            ..KeyChainSpec::default()
        },
        origin: Origin::Api,
        keys: vec![ChainKeyReport {
            key: KeySpec {
                send: Lifetime::default(),
                accept: Some(Lifetime {
                    start: None,
                    end: Some(moment(1)),
                }),
                ..key(5, KeyState::AcceptOnly, Origin::Api).key
            },
            ..key(5, KeyState::AcceptOnly, Origin::Api)
        }],
        peers: Vec::new(),
    }
}
