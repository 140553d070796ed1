//! Who is believed, and who is not.

use std::sync::Arc;

use grpc_api::peer::{CallError, Limits, Trust};
use grpc_api::v1;
use rustls::NamedGroup;
use rustls::crypto::aws_lc_rs::kx_group;

use crate::support::{
    Ca, End, GROUPS, Recorder, call, grpc, pair, partner, reply, self_signed, start, tls_connect,
};

/// What comes of a call by `client`, trusting `trust`, at `server`, trusting `known`.
async fn outcome(
    client: &End,
    trust: &Trust,
    server: &End,
    known: Trust,
) -> (Result<(), CallError>, usize) {
    let handler = Arc::new(Recorder::default());
    let known = vec![partner("a", known, &[])];
    let running = start("127.0.0.1:0", server, known, Limits::default(), &handler);
    let result = call(&running.endpoint(), client, trust).await;
    (
        result.map(|answer| assert_eq!(answer, reply())),
        handler.calls(),
    )
}

#[tokio::test]
async fn the_hybrid_group_is_preferred_and_x25519_is_the_fallback() {
    let pair = pair(Limits::default());
    let at = pair.running.address;
    for (offered, group) in [
        (&GROUPS[..], NamedGroup::X25519MLKEM768),
        (
            &[kx_group::SECP256R1, kx_group::X25519][..],
            NamedGroup::X25519,
        ),
    ] {
        let tls = tls_connect(at, Some(&pair.client), offered).await.unwrap();
        let negotiated = tls
            .get_ref()
            .1
            .negotiated_key_exchange_group()
            .unwrap()
            .name();
        assert_eq!(negotiated, group);
        assert_eq!(tls.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    }
    assert!(
        tls_connect(at, Some(&pair.client), &[kx_group::SECP256R1])
            .await
            .is_err()
    );
}

#[tokio::test]
async fn another_server_is_named_by_its_fingerprint() {
    let (client, server, other) = (
        self_signed("a", 2099),
        self_signed("b", 2099),
        self_signed("b", 2099),
    );
    let (result, calls) = outcome(&client, &other.pinned(), &server, client.pinned()).await;
    let error = result.unwrap_err();
    let (want, got) = (other.fingerprint(), server.fingerprint());
    assert!(
        matches!(error, CallError::WrongFingerprint { expected, seen, .. }
            if expected == want && seen == got),
        "{error}"
    );
    assert_eq!(calls, 0);
}

#[tokio::test]
async fn another_client_is_refused_and_told_its_fingerprint() {
    let (client, server, other) = (
        self_signed("a", 2099),
        self_signed("b", 2099),
        self_signed("a", 2099),
    );
    let (result, calls) = outcome(&client, &server.pinned(), &server, other.pinned()).await;
    let error = result.unwrap_err();
    assert!(
        matches!(error, CallError::NotTrusted { ours, .. } if ours == client.fingerprint()),
        "{error}"
    );
    assert_eq!(calls, 0);
}

#[tokio::test]
async fn expired_certificates_are_refused_though_pinned() {
    let (good, expired) = (self_signed("a", 2099), self_signed("a", 2001));
    let (result, calls) = outcome(&good, &expired.pinned(), &expired, good.pinned()).await;
    let error = result.unwrap_err();
    assert!(matches!(error, CallError::Untrusted { .. }), "{error}");
    assert!(
        error.to_string().contains("expired on 2001-12-31"),
        "{error}"
    );
    assert_eq!(calls, 0);

    let (result, calls) = outcome(&expired, &good.pinned(), &good, expired.pinned()).await;
    let error = result.unwrap_err();
    assert!(
        matches!(&error, CallError::NotTrusted { reason, .. } if reason == "CertificateExpired"),
        "{error}"
    );
    assert_eq!(calls, 0);
}

#[tokio::test]
async fn a_client_without_certificate_is_refused() {
    let pair = pair(Limits::default());
    let tls = tls_connect(pair.running.address, None, &GROUPS)
        .await
        .unwrap();
    let mut client = grpc(tls).await;
    let request = v1::ExchangeRequest {
        version: 1,
        label: "ipv4".to_owned(),
        view: None,
    };
    client.exchange(request).await.unwrap_err();
    assert_eq!(pair.handler.calls(), 0);
    pair.assert_serves().await;
}

#[tokio::test]
async fn the_pinned_certificate_is_nothing_without_its_key() {
    let pair = pair(Limits::default());
    let thief = self_signed("a", 2099);
    let stolen = End {
        certificate: pair.client.certificate.clone(),
        ..thief
    };
    let tls = tls_connect(pair.running.address, Some(&stolen), &GROUPS)
        .await
        .unwrap();
    let mut client = grpc(tls).await;
    let request = v1::ExchangeRequest {
        version: 1,
        label: "ipv4".to_owned(),
        view: None,
    };
    client.exchange(request).await.unwrap_err();
    assert_eq!(pair.handler.calls(), 0);
    pair.assert_serves().await;
}

#[tokio::test]
async fn an_authority_vouches_for_a_name_and_for_a_time() {
    let (ca, foreign) = (Ca::new(), Ca::new());
    let (a, b) = (ca.issue("a.example", 2099), ca.issue("b.example", 2099));
    let (trust_a, trust_b) = (ca.trust("a.example"), ca.trust("b.example"));

    let (result, calls) = outcome(&a, &trust_b, &b, trust_a.clone()).await;
    result.unwrap();
    assert_eq!(calls, 1);

    // Each of these is right but for one thing.
    let late = ca.issue("a.example", 2001);
    let named = ca.issue("c.example", 2099);
    let forged = foreign.issue("a.example", 2099);
    let own = self_signed("a.example", 2099);
    for wrong in [&late, &named, &forged, &own] {
        let (result, calls) = outcome(wrong, &trust_b, &b, trust_a.clone()).await;
        let error = result.unwrap_err();
        assert!(matches!(error, CallError::NotTrusted { .. }), "{error}");
        let (result, at_wrong) = outcome(&b, &trust_a, wrong, trust_b.clone()).await;
        let error = result.unwrap_err();
        assert!(matches!(error, CallError::Untrusted { .. }), "{error}");
        assert_eq!((calls, at_wrong), (0, 0));
    }
}

#[tokio::test]
async fn one_may_be_pinned_and_the_other_of_an_authority() {
    let ca = Ca::new();
    let (a, b) = (ca.issue("a.example", 2099), self_signed("b", 2099));
    let (result, calls) = outcome(&a, &b.pinned(), &b, ca.trust("a.example")).await;
    result.unwrap();
    assert_eq!(calls, 1);
}
