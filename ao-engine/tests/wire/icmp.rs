//! ICMP errors.

use ao_engine::reason::DropReason;
use ao_engine::wire::{ParseError, icmp_checksum_ok, parse_icmp_error, set_icmp_mtu};

use super::packets::{SEQ, Spec, internet_checksum, v4, v6};

/// An ICMP error with this type, code, second word and quoted packet.
fn error(outer: &Spec, kind: u8, code: u8, word: u32, quoted: &[u8]) -> Vec<u8> {
    let mut icmp = [&[kind, code, 0, 0][..], &word.to_be_bytes(), quoted].concat();
    let protocol = if outer.v6 { 58 } else { 1 };
    let checksum = if outer.v6 {
        outer.checksum(protocol, &icmp)
    } else {
        internet_checksum(&icmp)
    };
    icmp[2..4].copy_from_slice(&checksum);
    outer.ip(protocol, &icmp)
}

#[test]
fn too_big() {
    for (spec, kind, code) in [(v4(), 3, 4), (v6(), 2, 0)] {
        let quoted = spec.build();
        let mut packet = error(&spec, kind, code, 1400, &quoted[..quoted.len() - 7 - 12]);
        let found = parse_icmp_error(&packet).unwrap();
        assert_eq!(
            (found.kind, found.code, found.mtu),
            (kind, code, Some(1400))
        );
        assert_eq!(found.version, if spec.v6 { 6 } else { 4 });
        assert_eq!([found.quoted.src, found.quoted.dst], spec.addresses());
        assert_eq!([found.outer_src, found.outer_dst], spec.addresses());
        assert_eq!((found.quoted.src_port, found.quoted.dst_port), (50000, 179));
        assert_eq!(found.quoted.seq, SEQ);
        assert!(found.is_too_big());
        assert!(icmp_checksum_ok(&packet, &found));

        set_icmp_mtu(&mut packet, &found, 1384);
        assert!(icmp_checksum_ok(&packet, &found));
        let lowered = parse_icmp_error(&packet).unwrap();
        assert_eq!(lowered.mtu, Some(1384));
        let last = packet.len() - 1;
        packet[last] ^= 1;
        assert!(!icmp_checksum_ok(&packet, &found));
    }
}

#[test]
fn others_carry_no_mtu() {
    for (spec, kind, code) in [
        (v4(), 3, 1),
        (v4(), 3, 3),
        (v4(), 11, 0),
        (v4(), 12, 0),
        (v6(), 1, 4),
        (v6(), 3, 0),
        (v6(), 4, 1),
    ] {
        let mut packet = error(&spec, kind, code, 1400, &spec.build());
        let found = parse_icmp_error(&packet).unwrap();
        assert_eq!((found.kind, found.code, found.mtu), (kind, code, None));
        let before = packet.clone();
        set_icmp_mtu(&mut packet, &found, 1300);
        assert_eq!(packet, before);
    }
    let old_router = error(&v4(), 3, 4, 0, &v4().build());
    assert_eq!(parse_icmp_error(&old_router).unwrap().mtu, None);
}

#[test]
fn what_is_not_an_error_about_tcp() {
    let refusal = |packet: &[u8]| parse_icmp_error(packet).unwrap_err();
    for (spec, kind) in [
        (v4(), 0),
        (v4(), 8),
        (v4(), 5),
        (v6(), 128),
        (v6(), 135),
        (v6(), 0),
    ] {
        assert_eq!(
            refusal(&error(&spec, kind, 0, 0, &spec.build())),
            ParseError::NoIcmpError
        );
    }
    assert_eq!(refusal(&v4().build()), ParseError::NoIcmpError);
    assert_eq!(refusal(&v6().build()), ParseError::NoIcmpError);
    // ICMP over IPv6 and ICMPv6 over IPv4.
    assert_eq!(refusal(&v6().ip(1, &[3; 60])), ParseError::NoIcmpError);
    assert_eq!(refusal(&v4().ip(58, &[1; 60])), ParseError::NoIcmpError);
    assert_eq!(
        refusal(&error(&v4(), 3, 4, 0, &v6().build())),
        ParseError::Version
    );
    assert_eq!(
        refusal(&error(&v6(), 2, 0, 0, &v4().build())),
        ParseError::Version
    );
    assert_eq!(
        refusal(&error(&v4(), 3, 4, 0, &v4().ip(17, &[0; 8]))),
        ParseError::Protocol
    );
    for (spec, kind) in [(v4(), 3), (v6(), 2)] {
        let quoted = spec.build();
        let needed = quoted.len() - 7 - 12;
        for len in 0..needed {
            assert_eq!(
                refusal(&error(&spec, kind, 4, 0, &quoted[..len])),
                ParseError::Truncated,
                "{len}"
            );
        }
        assert!(parse_icmp_error(&error(&spec, kind, 4, 0, &quoted[..needed])).is_ok());
    }
}

#[test]
fn quoted_fragments_and_extension_headers() {
    let mut first = v4().build();
    first[6..8].copy_from_slice(&[0x20, 0]);
    assert!(parse_icmp_error(&error(&v4(), 3, 4, 1400, &first)).is_ok());
    let mut later = v4().build();
    later[6..8].copy_from_slice(&[0x20, 1]);
    let refused = parse_icmp_error(&error(&v4(), 3, 4, 1400, &later)).unwrap_err();
    assert_eq!(refused.reason(), DropReason::Fragment);

    let with = |first_header, extra: Vec<u8>| {
        Spec {
            first_header,
            extra,
            ..v6()
        }
        .build()
    };
    let quote = |quoted: &[u8]| parse_icmp_error(&error(&v6(), 2, 0, 1400, quoted));
    let first = quote(&with(44, vec![6, 0, 0, 1, 0, 0, 0, 9])).unwrap();
    assert_eq!((first.quoted.src_port, first.quoted.seq), (50000, SEQ));
    let later = quote(&with(44, vec![6, 0, 0, 9, 0, 0, 0, 9]));
    assert_eq!(later, Err(ParseError::Fragment));
    assert!(quote(&with(60, vec![6, 0, 1, 4, 0, 0, 0, 0])).is_ok());
    let routed = quote(&with(43, vec![6, 0, 4, 1, 0, 0, 0, 0]));
    assert_eq!(routed, Err(ParseError::ExtensionHeader));
}

#[test]
fn a_fragmented_error_is_refused() {
    let mut packet = error(&v4(), 3, 4, 1400, &v4().build());
    packet[6] = 0x20;
    assert_eq!(parse_icmp_error(&packet), Err(ParseError::Fragment));
    // Trailing octets that the IP header does not know of.
    let mut longer = error(&v6(), 2, 0, 1400, &v6().build());
    longer.push(0);
    assert_eq!(parse_icmp_error(&longer), Err(ParseError::Length));
}
