//! Every call by every role.

use tonic::Code;
use tonic::transport::Channel;

use super::support::{CALLERS, PATIENCE, Served, call, call_path, channel, request, role_map};
use crate::operator::administration::Role;
use crate::service::methods::METHODS;
use crate::service::methods::tests::documented;
use crate::test_support::Pki;
use crate::{FreshTls, RoleMap, Target, TlsFiles, connect, v1};

/// The calls that change something, as the made-up daemon notes them.
fn noted(call: &str, who: &str) -> Vec<String> {
    let by = |what: &str| format!("{who}: {what}");
    match call {
        "StartRollover" => vec![
            by("start a key change with peer as64502"),
            "started as64502 false".into(),
        ],
        "AbortRollover" => vec![
            by("abort the key change with peer as64502"),
            "aborted as64502".into(),
        ],
        "ForceRollover" => vec![
            by("delete superseded keys of peer as64502 at once"),
            "forced as64502".into(),
        ],
        "ReloadConfig" => vec![by("reloaded false")],
        "CreatePeer" => vec![by("put peer false")],
        "UpdatePeer" => vec![by("put peer true")],
        "DeletePeer" => vec![by("delete peer")],
        "CreateKeyChain" => vec![by("create chain")],
        "UpdateKeyChain" => vec![by("update chain")],
        "DeleteKeyChain" => vec![by("delete chain")],
        "CreateKey" => vec![by("put key false")],
        "UpdateKey" => vec![by("put key true")],
        "DeleteKey" => vec![by("delete key")],
        _ => Vec::new(),
    }
}

/// Makes every call, and checks which of them are made and which are refused.
async fn make_every_call(served: &Served, channel: Channel, role: Option<Role>, who: &str) {
    let wanted = documented();
    assert_eq!(wanted.len(), METHODS.len());
    for (name, wanted) in wanted {
        let wanted = match &*wanted {
            "viewer" => Role::Viewer,
            "operator" => Role::Operator,
            "admin" => Role::Admin,
            other => panic!("{name} has no role but {other:?}"),
        };
        let (code, reason) = call(channel.clone(), &name, request(&name)).await;
        let done = served.daemon.done();
        if role >= Some(wanted) {
            assert_eq!(code, Code::Ok, "{who} calls {name}: {reason}");
            assert_eq!(done, noted(&name, who), "{who} calls {name}");
        } else {
            assert_eq!(code, Code::PermissionDenied, "{who} calls {name}: {reason}");
            assert!(done.is_empty(), "{who} calls {name}: {done:?}");
        }
    }
}

/// Health and reflection are for viewers, and what does not exist is for nobody.
async fn make_other_calls(channel: Channel, role: Option<Role>) {
    let code = async |path| {
        let called = call_path(channel.clone(), path, Vec::new()).await;
        called.err().map_or(Code::Ok, |status| status.code())
    };
    let (viewers, missing) = match role {
        Some(_) => (Code::Ok, Code::Unimplemented),
        None => (Code::PermissionDenied, Code::PermissionDenied),
    };
    assert_eq!(code("/grpc.health.v1.Health/Check").await, viewers);
    let reflection = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
    // It is asked nothing, so that is its answer.
    let asked_nothing = role.map_or(Code::PermissionDenied, |_| Code::InvalidArgument);
    assert_eq!(code(reflection).await, asked_nothing);
    for path in [
        "/aosidecar.v1.OperatorService/NoSuchCall",
        "/aosidecar.v1.PeerKeyService/Exchange",
        "/",
    ] {
        assert_eq!(code(path).await, missing, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn users_make_every_call() {
    let served = Served::start();
    for ((caller, role), group) in CALLERS.into_iter().zip(100..) {
        let channel = served.user(caller).await;
        let who = format!("user {}, process 4711", 4_000_000_000_u32 + group);
        make_every_call(&served, channel.clone(), role, &who).await;
        make_other_calls(channel, role).await;
    }
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_make_every_call() {
    let served = Served::start();
    for (caller, role) in CALLERS {
        let channel = channel(&served.target(caller)).await;
        let who = format!("certificate {caller}.example from 127.0.0.1");
        make_every_call(&served, channel.clone(), role, &who).await;
        make_other_calls(channel, role).await;
    }
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_say_what_is_missing() {
    let served = Served::start();
    let refusal = async |channel| call(channel, "ReloadConfig", Vec::new()).await.1;
    assert_eq!(
        refusal(served.user("viewer").await).await,
        "this takes the role operator, and the caller has viewer"
    );
    assert_eq!(
        refusal(served.user("nobody").await).await,
        "user 4000000100 has no role: root, the sidecar's own user and members of the groups in \
         [api] have one"
    );
    assert_eq!(
        refusal(channel(&served.target("nobody")).await).await,
        "the name in the certificate (nobody.example) has no role in [api.tcp]"
    );
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn roles_are_replaced_while_callers_are_connected() {
    let names = role_map().names.into_keys();
    let nobody_but_viewers = RoleMap {
        groups: role_map()
            .groups
            .into_iter()
            .map(|(group, _)| (group, Role::Viewer))
            .collect(),
        names: names.map(|name| (name, Role::Viewer)).collect(),
    };
    for over_tcp in [false, true] {
        // Each has events and roles of its own.
        let served = Served::start();
        let [unix, tcp] = served.both("admin").await;
        let mut admin = if over_tcp { tcp } else { unix };
        let delete = || v1::DeletePeerRequest { name: "x".into() };
        admin.delete_peer(delete()).await.unwrap();
        let mut follow = admin
            .watch_events(v1::WatchEventsRequest {
                follow: true,
                ..v1::WatchEventsRequest::default()
            })
            .await
            .unwrap()
            .into_inner();

        served.roles.replace(nobody_but_viewers.clone());
        let refused = admin.delete_peer(delete()).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied);
        served.push(1);
        assert_eq!(follow.message().await.unwrap().unwrap().kind, "proven");

        served.roles.replace(RoleMap::default());
        let cut = tokio::time::timeout(PATIENCE, follow.message()).await;
        assert_eq!(cut.unwrap().unwrap_err().code(), Code::PermissionDenied);
        // The connection is closed, too: how a call fails depends on how far that has come.
        let answer = admin.get_status(v1::GetStatusRequest {}).await;
        assert!(answer.is_err(), "{answer:?}");
        served.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_certificates_of_the_authority_get_in() {
    let served = Served::start();
    let own = served.certificate(&["admin.example"]);
    let foreign_authority = Pki::named("foreign");
    let foreign = foreign_authority.issue(&["admin.example"]);
    let trouble = async |tls: TlsFiles, server_name: &str| {
        let target = Target::Tcp {
            address: served.address().to_string(),
            server_name: Some(server_name.to_owned()),
            tls,
        };
        let trouble = words(&connect(&target).await.unwrap_err());
        served.still_serves().await;
        trouble
    };
    let strange_caller = TlsFiles {
        ca: own.ca.clone(),
        ..foreign.clone()
    };
    let strange_sidecar = TlsFiles {
        ca: foreign.ca,
        ..own.clone()
    };
    for (tls, server_name, expected) in [
        (
            strange_caller,
            "sidecar.example",
            "the sidecar does not know the authority of our certificate",
        ),
        (
            strange_sidecar,
            "sidecar.example",
            "the certificate is not of the configured authority",
        ),
        (own, "other.example", "the sidecar's end of TLS is refused"),
    ] {
        let trouble = trouble(tls, server_name).await;
        assert!(trouble.contains(expected), "{trouble}");
    }
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renewed_certificate_is_for_whoever_comes_next() {
    let served = Served::start();
    let target = served.target("viewer");
    let mut before = connect(&target).await.unwrap();
    let other = Pki::named("renewed");
    let fresh = FreshTls::read(&other.issue(&["sidecar.example"])).unwrap();
    served.tls.replace(fresh);

    before.get_status(v1::GetStatusRequest {}).await.unwrap();
    let refused = words(&connect(&target).await.unwrap_err());
    assert!(
        refused.contains("not of the configured authority"),
        "{refused}"
    );
    let renewed = Target::Tcp {
        address: served.address().to_string(),
        server_name: Some("sidecar.example".into()),
        tls: other.issue(&["viewer.example"]),
    };
    let mut after = connect(&renewed).await.unwrap();
    let status = after.get_status(v1::GetStatusRequest {}).await.unwrap();
    assert_eq!(status.into_inner().role, "viewer");
    served.stop().await;
}

/// An error with all its causes.
fn words(error: &(dyn std::error::Error + 'static)) -> String {
    let mut words = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        words = format!("{words}: {cause}");
        next = cause.source();
    }
    words
}
