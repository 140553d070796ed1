//! Who may do what by the API, as the configuration says.

use std::io;

use grpc_api::RoleMap;
use grpc_api::operator::administration::Role;
use nix::unistd::Group;

use crate::config::ApiConfig;

/// Why roles cannot be given as they are written.
#[derive(Debug, thiserror::Error)]
pub(super) enum RolesError {
    /// This machine does not know a group.
    #[error("[api] names the group {0:?}, which this machine does not know: groupadd {0}")]
    NoGroup(String),
    /// Groups cannot be looked up.
    #[error("[api] names the group {0:?}, which cannot be looked up: {1}")]
    Lookup(String, #[source] io::Error),
}

/// The roles that `config` gives, with the IDs that its groups have now.
pub(super) fn of(config: &ApiConfig) -> Result<RoleMap, RolesError> {
    let (map, missing) = known(config);
    missing.map_or(Ok(map), Err)
}

/// The same as far as groups are known, and why one is not.
pub(super) fn known(config: &ApiConfig) -> (RoleMap, Option<RolesError>) {
    let mut map = RoleMap::default();
    let mut missing = None;
    let groups = [
        (&config.viewer_group, Role::Viewer),
        (&config.operator_group, Role::Operator),
        (&config.admin_group, Role::Admin),
    ];
    for (name, role) in groups {
        let Some(name) = name else { continue };
        match Group::from_name(name) {
            Ok(Some(group)) => map.groups.push((group.gid.as_raw(), role)),
            Ok(None) => missing = Some(RolesError::NoGroup(name.clone())),
            Err(error) => missing = Some(RolesError::Lookup(name.clone(), error.into())),
        }
    }
    if let Some(tcp) = &config.tcp {
        let names = [
            (&tcp.viewers, Role::Viewer),
            (&tcp.operators, Role::Operator),
            (&tcp.admins, Role::Admin),
        ];
        for (names, role) in names {
            map.names
                .extend(names.iter().map(|name| (name.clone(), role)));
        }
    }
    (map, missing)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_has_its_role_by_its_id() {
        let config = ApiConfig {
            operator_group: Some("root".to_owned()),
            ..ApiConfig::default()
        };
        assert_eq!(of(&config).unwrap().groups, [(0, Role::Operator)]);
    }

    #[test]
    fn a_group_that_nobody_knows_is_an_error_with_its_name() {
        let config = ApiConfig {
            viewer_group: Some("no-such-group-here".to_owned()),
            ..ApiConfig::default()
        };
        let error = of(&config).unwrap_err().to_string();
        assert!(error.contains("no-such-group-here"), "{error}");
        let some = ApiConfig {
            admin_group: Some("root".to_owned()),
            ..config
        };
        let (map, missing) = known(&some);
        assert_eq!(map.groups, [(0, Role::Admin)], "the others have theirs");
        assert!(missing.is_some());
    }
}
