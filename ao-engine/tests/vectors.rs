//! All 32 test vectors of RFC 9235 §4 to §7: key derivation, MAC input, MAC, and both ways
//! through the option edits.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::IpAddr;
use std::sync::Arc;

use ao_engine::crypto::{
    Algorithm, KdfContext, Mac, MacJob, MacProvider, MasterKey, RustCrypto, derive,
};
use ao_engine::examine::{Examined, Hint, Keys, Sender, examine};
use ao_engine::policy::Mkt;
use ao_engine::wire::{
    AoOption, HEADROOM, MacHeader, PacketBuf, Segment, checksum_ok, fill_checksum, insert_ao,
    mac_header, remove_ao, set_mac, summarize_options,
};
use serde_json::Value;

struct Vector {
    section: String,
    algorithm: Algorithm,
    include_options: bool,
    context: KdfContext,
    key_id: u8,
    rnext_key_id: u8,
    sne: u32,
    packet: Vec<u8>,
    traffic_key: Vec<u8>,
    mac_input: Vec<u8>,
    mac: Vec<u8>,
}

fn unhex(text: &str) -> Vec<u8> {
    assert!(text.len().is_multiple_of(2));
    (0..text.len())
        .step_by(2)
        .map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap())
        .collect()
}

fn text<'v>(value: &'v Value, name: &str) -> &'v str {
    value[name].as_str().unwrap()
}

fn number<T: TryFrom<u64, Error: std::fmt::Debug>>(value: &Value, name: &str) -> T {
    let number = match &value[name] {
        Value::String(hex) => u64::from_str_radix(hex.trim_start_matches("0x"), 16).unwrap(),
        other => other.as_u64().unwrap(),
    };
    T::try_from(number).unwrap()
}

fn load() -> (MasterKey, Vec<Vector>) {
    let data: Value = serde_json::from_str(include_str!("data/rfc9235-vectors.json")).unwrap();
    let master = unhex(text(&data["common"], "master_key_hex"));
    let vectors = data["vectors"]
        .as_array()
        .unwrap()
        .iter()
        .map(|vector| Vector {
            section: text(vector, "section").into(),
            algorithm: text(vector, "mac_algorithm")
                .to_lowercase()
                .parse()
                .unwrap(),
            include_options: vector["options_included"].as_bool().unwrap(),
            context: KdfContext {
                src: text(vector, "src_addr").parse::<IpAddr>().unwrap(),
                dst: text(vector, "dst_addr").parse::<IpAddr>().unwrap(),
                src_port: number(vector, "src_port"),
                dst_port: number(vector, "dst_port"),
                src_isn: number(vector, "kdf_src_isn"),
                dst_isn: number(vector, "kdf_dst_isn"),
            },
            key_id: number(vector, "key_id"),
            rnext_key_id: number(vector, "rnext_key_id"),
            sne: number(vector, "sne"),
            packet: unhex(text(vector, "packet")),
            traffic_key: unhex(text(vector, "traffic_key")),
            mac_input: unhex(text(vector, "mac_input")),
            mac: unhex(text(vector, "mac")),
        });
    (MasterKey::new(&master).unwrap(), vectors.collect())
}

fn mac_of(vector: &Vector, master: &MasterKey, packet: &[u8], ao: &AoOption) -> (Vec<u8>, Mac) {
    let segment = Segment::parse(packet).unwrap();
    let mut header = MacHeader::default();
    mac_header(
        packet,
        &segment,
        ao,
        vector.sne,
        vector.include_options,
        &mut header,
    );
    let key = RustCrypto.prepare(
        vector.algorithm,
        &derive(vector.algorithm, master, &vector.context),
    );
    let mut jobs = [MacJob::new(
        &key,
        header.as_bytes(),
        segment.payload(packet),
    )];
    RustCrypto.compute(&mut jobs);
    (
        [header.as_bytes(), segment.payload(packet)].concat(),
        jobs[0].mac,
    )
}

#[test]
fn there_are_32() {
    let (_, vectors) = load();
    assert_eq!(vectors.len(), 32);
    let count = |algorithm| {
        vectors
            .iter()
            .filter(|one| one.algorithm == algorithm)
            .count()
    };
    assert_eq!(
        (
            count(Algorithm::HmacSha1_96),
            count(Algorithm::Aes128Cmac96)
        ),
        (16, 16)
    );
    assert_eq!(vectors.iter().filter(|one| one.include_options).count(), 16);
    assert_eq!(
        vectors
            .iter()
            .filter(|one| one.context.src.is_ipv4())
            .count(),
        16
    );
}

#[test]
fn receiving() {
    let (master, vectors) = load();
    for vector in &vectors {
        let section = &vector.section;
        let key = derive(vector.algorithm, &master, &vector.context);
        assert_eq!(key.as_bytes(), vector.traffic_key, "{section}");

        let segment = Segment::parse(&vector.packet).unwrap();
        assert_eq!(
            (segment.src, segment.dst),
            (vector.context.src, vector.context.dst)
        );
        let ports = (vector.context.src_port, vector.context.dst_port);
        assert_eq!((segment.src_port, segment.dst_port), ports);
        // The IPv4 packets in the RFC have wrong TCP checksums, the IPv6 packets right ones.
        assert_eq!(
            checksum_ok(&vector.packet, &segment),
            segment.src.is_ipv6(),
            "{section}"
        );

        let ao = summarize_options(&vector.packet, &segment)
            .unwrap()
            .ao
            .unwrap();
        assert_eq!(
            (ao.key_id, ao.rnext_key_id),
            (vector.key_id, vector.rnext_key_id)
        );
        assert_eq!(ao.mac(&vector.packet), vector.mac);
        let (input, mac) = mac_of(vector, &master, &vector.packet, &ao);
        assert_eq!(input, vector.mac_input, "{section}");
        assert!(mac.ct_eq(ao.mac(&vector.packet)), "{section}");
    }
}

#[test]
fn sending() {
    let (master, vectors) = load();
    for vector in &vectors {
        let section = &vector.section;
        let mut storage = [&[0xee; HEADROOM][..], &vector.packet].concat();
        let end = storage.len();
        let mut buf = PacketBuf::new(&mut storage, HEADROOM, end).unwrap();
        let mut segment = Segment::parse(buf.bytes()).unwrap();

        let ao = summarize_options(buf.bytes(), &segment)
            .unwrap()
            .ao
            .unwrap();
        remove_ao(&mut buf, &mut segment, &ao);
        assert_eq!(buf.len(), vector.packet.len() - 16, "{section}");
        assert_eq!(summarize_options(buf.bytes(), &segment).unwrap().ao, None);

        let mac_len = vector.algorithm.mac_len();
        let (key_id, rnext) = (vector.key_id, vector.rnext_key_id);
        let ao = insert_ao(&mut buf, &mut segment, key_id, rnext, mac_len).unwrap();
        let (_, mac) = mac_of(vector, &master, buf.bytes(), &ao);
        set_mac(buf.bytes_mut(), &ao, &mac);
        fill_checksum(buf.bytes_mut(), &segment);
        assert!(checksum_ok(buf.bytes(), &segment), "{section}");

        let mut expected = vector.packet.clone();
        if segment.src.is_ipv4() {
            let checksum = segment.tcp_offset() + 16..segment.tcp_offset() + 18;
            expected[checksum.clone()].copy_from_slice(&buf.bytes()[checksum]);
        }
        assert_eq!(buf.bytes(), expected, "{section}");
    }
}

#[test]
fn any_wrong_parameter_is_noticed() {
    let (master, vectors) = load();
    let other_master = MasterKey::new(b"testvectos").unwrap();
    for vector in &vectors {
        let segment = Segment::parse(&vector.packet).unwrap();
        let ao = summarize_options(&vector.packet, &segment)
            .unwrap()
            .ao
            .unwrap();
        let refused = |vector: &Vector, master: &MasterKey| {
            !mac_of(vector, master, &vector.packet, &ao)
                .1
                .ct_eq(&vector.mac)
        };
        let with = |change: &dyn Fn(&mut KdfContext, &mut u32)| {
            let (mut context, mut sne) = (vector.context, vector.sne);
            change(&mut context, &mut sne);
            Vector {
                section: vector.section.clone(),
                packet: vector.packet.clone(),
                traffic_key: Vec::new(),
                mac_input: Vec::new(),
                mac: vector.mac.clone(),
                context,
                sne,
                ..*vector
            }
        };
        assert!(!refused(vector, &master));
        assert!(refused(vector, &other_master));
        assert!(refused(&with(&|_, sne| *sne += 1), &master));
        assert!(refused(&with(&|context, _| context.src_isn ^= 1), &master));
        assert!(refused(&with(&|context, _| context.dst_isn ^= 1), &master));
        assert!(refused(&with(&|context, _| context.src_port ^= 1), &master));
    }
}

#[test]
fn first_segments_are_recognised_without_their_connection() {
    let (master, vectors) = load();
    let mut examined = 0;
    for vector in &vectors {
        let segment = Segment::parse(&vector.packet).unwrap();
        if !segment.flags.syn() {
            continue;
        }
        examined += 1;
        let found = |include_options| {
            let key = Mkt {
                send_id: vector.rnext_key_id,
                recv_id: vector.key_id,
                algorithm: vector.algorithm,
                master_key: MasterKey::new(master.expose()).unwrap(),
                include_options,
            };
            let keys = Keys {
                active: &[Arc::new(key)],
                inactive: &[],
            };
            examine(&vector.packet, Sender::FarEnd, keys)
        };
        let (key_id, rnext_key_id) = (vector.key_id, vector.rnext_key_id);
        let verified = Examined::Verified {
            key_id,
            rnext_key_id,
            rnext_known: true,
        };
        assert_eq!(found(vector.include_options), verified);
        let otherwise = Examined::WrongMac {
            key_id,
            rnext_key_id,
            hint: Hint::OptionsFlag {
                include_options: vector.include_options,
            },
        };
        assert_eq!(found(!vector.include_options), otherwise);
    }
    assert_eq!(examined, 16);
}
