//! What is no proper call: it gets a clear answer, and the API goes on.

use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;
use tonic::Code;
use tonic::transport::Channel;

use super::support::{PATIENCE, Served, call, channel, request};
use crate::service::methods::METHODS;
use crate::v1;

/// An admin over either transport.
async fn admins(served: &Served) -> [Channel; 2] {
    [
        served.user("admin").await,
        channel(&served.target("admin")).await,
    ]
}

/// A message with `octets` as its field 1.
fn field_1(octets: &[u8]) -> Vec<u8> {
    let mut message = vec![0x0a];
    prost::encoding::encode_varint(octets.len() as u64, &mut message);
    message.extend(octets);
    message
}

#[tokio::test(flavor = "multi_thread")]
async fn names_have_their_bounds() {
    let served = Served::start();
    let named = METHODS.iter().filter(|method| {
        // Those whose field 1 is a text, a name.
        let texts = [
            "Keys", "Chains", "Chain", "Peer", "Rollover", "Key", "Diagnose",
        ];
        let other = [
            "CreatePeer",
            "UpdatePeer",
            "CreateKeyChain",
            "UpdateKeyChain",
        ];
        texts.iter().any(|text| method.name.ends_with(text)) && !other.contains(&method.name)
    });
    let named: Vec<_> = named.map(|method| method.name).collect();
    assert_eq!(named.len(), 12, "{named:?}");
    for admin in admins(&served).await {
        for name in &named {
            let ask = async |text: &[u8]| call(admin.clone(), name, field_1(text)).await;
            let (code, reason) = ask(&[b'x'; 65]).await;
            assert_eq!(code, Code::InvalidArgument, "{name}: {reason}");
            assert!(reason.contains("has 1 to 64 octets"), "{name}: {reason}");
            let (code, reason) = ask(b"a\x1b[2J").await;
            assert_eq!(code, Code::InvalidArgument, "{name}: {reason}");
            let (code, reason) = ask(&vec![b'x'; 1 << 20]).await;
            assert_eq!(code, Code::OutOfRange, "{name}: {reason}");
            let (code, reason) = ask(&[0xff, 0xfe]).await;
            assert_eq!(code, Code::InvalidArgument, "{name}: {reason}");
            assert!(reason.contains("does not decode"), "{name}: {reason}");
        }
    }
    assert!(served.daemon.done().is_empty());
    served.still_serves().await;
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_fields_are_refused_where_something_changes() {
    let served = Served::start();
    for admin in admins(&served).await {
        for method in METHODS {
            let mut octets = request(method.name);
            // Field 1000, a text that nobody may see.
            octets.extend([0xc2, 0x3e, 8]);
            octets.extend(b"precious");
            let (code, reason) = call(admin.clone(), method.name, octets).await;
            if method.changes {
                assert_eq!(code, Code::InvalidArgument, "{}", method.name);
                let field = format!("field 1000 of {}Request is not known here", method.name);
                assert!(reason.starts_with(&field), "{reason}");
                assert!(served.daemon.done().is_empty(), "{}", method.name);
            } else {
                assert_eq!(code, Code::Ok, "{}: {reason}", method.name);
            }
        }
    }
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_decode_is_refused() {
    let served = Served::start();
    let broken: [&[u8]; 6] = [
        // A length beyond the end, a varint without one, a group, wire type 7, a number where a
        // text is, and a text where a message is.
        &[0x0a, 200],
        &[
            0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
        ],
        &[0x0b],
        &[0x0f],
        &[0x08, 1],
        &[0x0a, 3, 0xff, 0xff, 0xff],
    ];
    for admin in admins(&served).await {
        for octets in broken {
            for name in ["DeletePeer", "CreatePeer", "CreateKey", "ListKeys"] {
                let (code, reason) = call(admin.clone(), name, octets.to_vec()).await;
                assert_eq!(code, Code::InvalidArgument, "{name} {octets:?}: {reason}");
            }
        }
    }
    assert!(served.daemon.done().is_empty());
    served.still_serves().await;
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_values_change_nothing_and_show_no_secret() {
    let served = Served::start();
    let key = v1::KeySpec {
        send_id: Some(256),
        recv_id: Some(1),
        algorithm: "aes-128-cmac-96".into(),
        secret: b"precious".to_vec(),
        ..v1::KeySpec::default()
    };
    let create = |key| {
        let key_chain = "transit".to_owned();
        v1::CreateKeyRequest {
            key_chain,
            key: Some(key),
        }
        .encode_to_vec()
    };
    let too_long = v1::KeySpec {
        send_id: Some(1),
        secret: b"precious".repeat(11),
        ..key.clone()
    };
    for admin in admins(&served).await {
        for (key, expected) in [
            (key.clone(), "send_id is 0 to 255"),
            (too_long.clone(), "a secret has 1 to 80 octets"),
        ] {
            let refused = call(admin.clone(), "CreateKey", create(key)).await;
            assert_eq!(refused, (Code::InvalidArgument, expected.to_owned()));
        }
        let listen = v1::DiagnoseRequest {
            listen: Some(prost_types::Duration {
                seconds: 151,
                nanos: 0,
            }),
            ..v1::DiagnoseRequest::default()
        };
        let refused = call(admin, "Diagnose", listen.encode_to_vec()).await;
        assert_eq!(
            refused,
            (Code::InvalidArgument, "listen is 0 to 150 s".to_owned())
        );
    }
    assert!(served.daemon.done().is_empty());
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configuration_may_have_a_mebibyte() {
    let served = Served::start();
    for admin in admins(&served).await {
        let validate = async |length: usize| {
            let toml = "#".repeat(length);
            let request = v1::ValidateConfigRequest { toml }.encode_to_vec();
            call(admin.clone(), "ValidateConfig", request).await.0
        };
        assert_eq!(validate(1 << 20).await, Code::Ok);
        assert_eq!(validate((1 << 20) + 1).await, Code::InvalidArgument);
        assert_eq!(validate(2 << 20).await, Code::OutOfRange);
    }
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_http_2_is_closed() {
    let served = Served::start();
    let tls_hello = [0x16, 3, 1, 0, 200, 1, 0, 0];
    let everything: Vec<u8> = (0..=255).cycle().take(100_000).collect();
    let texts: [&[u8]; 4] = [
        b"GET / HTTP/1.1\r\nHost: sidecar\r\n\r\n",
        &tls_hello,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff\xff\xff\xff\xff\xff",
        &everything,
    ];
    for octets in texts {
        let mut stream = UnixStream::connect(served.socket()).await.unwrap();
        // It may be closed before all is written.
        let _ = stream.write_all(octets).await;
        let mut answer = Vec::new();
        let closed = timeout(PATIENCE, stream.read_to_end(&mut answer)).await;
        assert!(closed.is_ok());
        served.still_serves().await;
    }
    served.stop().await;
}
