//! The calls there are, and who may make them.

use crate::operator::administration::Role;

/// A call of an API on the operator's side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Method {
    /// Its name, as in the `.proto`.
    pub(crate) name: &'static str,
    /// The lowest role that may make it.
    pub(crate) role: Role,
    /// Whether it changes something: then its request must have no field that we do not know.
    pub(crate) changes: bool,
}

/// What the paths of the operator service begin with.
pub(crate) const OPERATOR: &str = "/aosidecar.v1.OperatorService/";

const fn view(name: &'static str) -> Method {
    Method {
        name,
        role: Role::Viewer,
        changes: false,
    }
}

const fn operate(name: &'static str, changes: bool) -> Method {
    Method {
        name,
        role: Role::Operator,
        changes,
    }
}

const fn administer(name: &'static str) -> Method {
    Method {
        name,
        role: Role::Admin,
        changes: true,
    }
}

/// Every call of the operator service. What is not here, nobody may call.
pub(crate) const METHODS: [Method; 26] = [
    view("GetStatus"),
    view("ListPeers"),
    view("ListSessions"),
    view("GetCounters"),
    view("ListKeys"),
    view("ListKeyChains"),
    view("GetRollover"),
    operate("StartRollover", true),
    operate("AbortRollover", true),
    operate("ForceRollover", true),
    view("GetIdentity"),
    view("WatchEvents"),
    view("GetConfig"),
    operate("ValidateConfig", false),
    operate("DiffConfig", false),
    operate("ReloadConfig", true),
    administer("CreatePeer"),
    administer("UpdatePeer"),
    administer("DeletePeer"),
    administer("CreateKeyChain"),
    administer("UpdateKeyChain"),
    administer("DeleteKeyChain"),
    administer("CreateKey"),
    administer("UpdateKey"),
    administer("DeleteKey"),
    operate("Diagnose", false),
];

/// What viewers may call beside the operator service.
const OTHERS: [&str; 3] = [
    "/grpc.health.v1.Health/Check",
    "/grpc.health.v1.Health/Watch",
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
];

/// A path that is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Called {
    /// A call of the operator service.
    Operator(Method),
    /// Health or reflection.
    Other,
}

impl Called {
    /// What has this path; nothing when there is no such call.
    pub(crate) fn at(path: &str) -> Option<Self> {
        match path.strip_prefix(OPERATOR) {
            Some(name) => METHODS
                .iter()
                .find(|method| method.name == name)
                .map(|&method| Self::Operator(method)),
            None => OTHERS.contains(&path).then_some(Self::Other),
        }
    }

    /// The lowest role that may make the call.
    pub(crate) fn role(self) -> Role {
        match self {
            Self::Operator(method) => method.role,
            Self::Other => Role::Viewer,
        }
    }
}

/// Whether the message `request` asks for a change.
pub(crate) fn changes(request: &str) -> bool {
    request
        .strip_suffix("Request")
        .and_then(|name| METHODS.iter().find(|method| method.name == name))
        .is_some_and(|method| method.changes)
}

#[cfg(test)]
pub(super) mod tests {
    use prost::Message;
    use prost_types::FileDescriptorSet;

    use super::*;
    use crate::codec::DESCRIPTORS;

    /// What the comments of the `.proto` say: each call with the last word of its comment.
    pub(crate) fn documented() -> Vec<(String, String)> {
        let text = include_str!("../../../proto/aosidecar/v1/operator.proto");
        let mut last_comment = "";
        let mut calls = Vec::new();
        for line in text.lines().map(str::trim) {
            if let Some(comment) = line.strip_prefix("//") {
                last_comment = comment;
            } else if let Some(call) = line.strip_prefix("rpc ") {
                let name = call.split('(').next().unwrap_or_default();
                let role = last_comment.rsplit(' ').next().unwrap_or_default();
                calls.push((name.to_owned(), role.trim_end_matches('.').to_lowercase()));
            }
        }
        calls
    }

    #[test]
    fn every_call_has_the_role_of_its_documentation() {
        let table = METHODS.map(|method| (method.name.to_owned(), method.role.as_str().to_owned()));
        assert_eq!(documented(), table);
    }

    #[test]
    fn every_call_has_a_request_of_its_name() {
        let set = FileDescriptorSet::decode(DESCRIPTORS).unwrap();
        let services = set.file.iter().flat_map(|file| &file.service);
        let operator: Vec<_> = services
            .filter(|service| service.name() == "OperatorService")
            .flat_map(|service| &service.method)
            .map(|method| (method.name().to_owned(), method.input_type().to_owned()))
            .collect();
        let table = METHODS.map(|method| {
            let input = format!(".aosidecar.v1.{}Request", method.name);
            (method.name.to_owned(), input)
        });
        assert_eq!(operator, table);
    }

    #[test]
    fn paths_are_found_or_not() {
        let role = |path| Called::at(path).map(Called::role);
        assert_eq!(
            role("/aosidecar.v1.OperatorService/DeleteKey"),
            Some(Role::Admin)
        );
        assert_eq!(role("/grpc.health.v1.Health/Check"), Some(Role::Viewer));
        for path in [
            "/aosidecar.v1.OperatorService/",
            "/aosidecar.v1.OperatorService/deletekey",
            "/aosidecar.v1.PeerKeyService/Exchange",
            "/grpc.health.v1.Health/",
            "",
        ] {
            assert_eq!(role(path), None, "{path}");
        }
    }
}
