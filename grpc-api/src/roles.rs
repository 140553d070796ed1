//! Who may do what: the role of a caller by its user and groups, or by the name in its certificate.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::sync::Arc;

use nix::unistd::{Uid, User};
use tokio::net::UnixStream;
use tokio::sync::watch;

use crate::operator::administration::Role;

/// Which groups and names have which role. Root and the user of this process are admins always, on
/// the Unix socket.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RoleMap {
    /// Groups of this machine by their IDs. Who is in several has the highest of their roles.
    pub groups: Vec<(u32, Role)>,
    /// Names (dNSName of the subject's alternative names, in any case) in certificates of callers
    /// over TCP.
    pub names: BTreeMap<String, Role>,
}

impl RoleMap {
    /// The highest role that `identity` has.
    pub(crate) fn role(&self, identity: &Identity) -> Option<Role> {
        match identity {
            Identity::User { uid, .. } if may_all(*uid) => Some(Role::Admin),
            Identity::User { groups, .. } => {
                let own = self.groups.iter().filter(|(gid, _)| groups.contains(gid));
                own.map(|&(_, role)| role).max()
            }
            Identity::Certificate { names, .. } => names
                .iter()
                .filter_map(|name| self.named(name))
                .map(|(_, role)| role)
                .max(),
        }
    }

    /// The name of this map that `name` is, with its role.
    pub(crate) fn named(&self, name: &str) -> Option<(&str, Role)> {
        let mut names = self.names.iter();
        names
            .find(|(known, _)| known.eq_ignore_ascii_case(name))
            .map(|(known, &role)| (known.as_str(), role))
    }
}

/// Whether `uid` is root or the user of this process.
fn may_all(uid: u32) -> bool {
    let uid = Uid::from_raw(uid);
    uid.is_root() || uid == Uid::effective()
}

/// The roles in use. Clones are the same roles.
#[derive(Clone, Debug)]
pub struct Roles {
    map: Arc<watch::Sender<Arc<RoleMap>>>,
}

impl Roles {
    /// Roles that begin with `map`.
    #[must_use]
    pub fn new(map: RoleMap) -> Self {
        Self {
            map: Arc::new(watch::Sender::new(Arc::new(map))),
        }
    }

    /// Takes other roles over: for calls from now on. Connections of those who have none any more
    /// are closed, and the socket is opened to other groups.
    pub fn replace(&self, map: RoleMap) {
        self.map.send_replace(Arc::new(map));
    }

    /// The roles of this moment.
    #[must_use]
    pub fn current(&self) -> Arc<RoleMap> {
        Arc::clone(&self.map.borrow())
    }

    /// For those who want to know when they change.
    pub(crate) fn watch(&self) -> watch::Receiver<Arc<RoleMap>> {
        self.map.subscribe()
    }
}

impl Default for Roles {
    fn default() -> Self {
        Self::new(RoleMap::default())
    }
}

/// Who is at the other end of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Identity {
    /// A user of this machine, as of when it connected.
    User {
        uid: u32,
        /// All groups, the primary one included.
        groups: Vec<u32>,
        /// The process, unless it is in another namespace.
        pid: Option<u32>,
    },
    /// Who has a certificate with these DNS names, one at least.
    Certificate { names: Vec<String>, from: IpAddr },
}

impl Identity {
    /// Who has connected to the Unix socket.
    pub(crate) fn of(stream: &UnixStream) -> io::Result<Self> {
        let credentials = stream.peer_cred()?;
        let mut groups = ao_sys::unix::peer_groups(stream.as_fd())?;
        groups.push(credentials.gid());
        let pid = credentials.pid().and_then(|pid| u32::try_from(pid).ok());
        Ok(Self::User {
            uid: credentials.uid(),
            groups,
            pid: pid.filter(|&pid| pid != 0),
        })
    }

    /// For the audit log. Looks users up, which may take a while where a directory knows them.
    pub(crate) fn describe(&self, map: &RoleMap) -> String {
        match self {
            Self::User { uid, pid, .. } => {
                let user = User::from_uid(Uid::from_raw(*uid)).ok().flatten();
                let name = user.map_or_else(String::new, |user| format!(" ({})", user.name));
                let process = pid.map_or_else(String::new, |pid| format!(", process {pid}"));
                format!("user {uid}{name}{process}")
            }
            Self::Certificate { names, from } => {
                let known = names.iter().find_map(|name| map.named(name));
                let name = known.map_or_else(|| names.join(", "), |(name, _)| name.to_owned());
                format!("certificate {name} from {from}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(uid: u32, groups: &[u32]) -> Identity {
        Identity::User {
            uid,
            groups: groups.to_vec(),
            pid: None,
        }
    }

    fn map() -> RoleMap {
        let names = [("ann.example", Role::Admin), ("Bob.example", Role::Viewer)];
        RoleMap {
            groups: vec![
                (100, Role::Viewer),
                (101, Role::Operator),
                (102, Role::Admin),
            ],
            names: names.map(|(name, role)| (name.to_owned(), role)).into(),
        }
    }

    #[test]
    fn users_have_the_highest_role_of_their_groups() {
        let role = |identity| map().role(&identity);
        assert_eq!(role(user(1000, &[1000])), None);
        assert_eq!(role(user(1000, &[1000, 100])), Some(Role::Viewer));
        assert_eq!(role(user(1000, &[100, 102, 101])), Some(Role::Admin));
        assert_eq!(role(user(0, &[])), Some(Role::Admin));
        let own = Uid::effective().as_raw();
        assert_eq!(RoleMap::default().role(&user(own, &[])), Some(Role::Admin));
        assert_eq!(RoleMap::default().role(&user(1000, &[0])), None);
    }

    #[test]
    fn names_are_compared_without_case() {
        let role = |names: &[&str]| {
            map().role(&Identity::Certificate {
                names: names.iter().map(|&name| name.to_owned()).collect(),
                from: "192.0.2.1".parse().unwrap(),
            })
        };
        assert_eq!(role(&["ANN.example"]), Some(Role::Admin));
        assert_eq!(role(&["bob.EXAMPLE", "other"]), Some(Role::Viewer));
        assert_eq!(role(&["bob.example", "ann.example"]), Some(Role::Admin));
        assert_eq!(role(&["example"]), None);
    }

    #[test]
    fn callers_are_described_for_the_audit_log() {
        let told = user(0, &[]).describe(&map());
        assert_eq!(told, "user 0 (root)");
        let nobody_knows = Identity::User {
            uid: 4_000_000_000,
            groups: Vec::new(),
            pid: Some(4711),
        };
        assert_eq!(
            nobody_knows.describe(&map()),
            "user 4000000000, process 4711"
        );
        let ann = Identity::Certificate {
            names: vec!["spare".into(), "ANN.example".into()],
            from: "192.0.2.1".parse().unwrap(),
        };
        assert_eq!(
            ann.describe(&map()),
            "certificate ann.example from 192.0.2.1"
        );
    }
}
