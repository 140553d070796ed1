//! Who may do what: the role of a caller by its user and groups, or by the name in its certificate.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::watch;

use crate::operator::administration::Role;

/// Which groups and names have which role. Root and the user of this process are admins always.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RoleMap {
    /// Groups of this machine by their IDs. Who is in several has the highest of their roles.
    pub groups: Vec<(u32, Role)>,
    /// Names (dNSName of the subject's alternative names) in certificates of callers over TCP.
    pub names: BTreeMap<String, Role>,
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

    /// Takes other roles over: for calls from now on, and for connections that are open.
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
