//! What holds for every packet.

use ao_engine::crypto::Mac;
use ao_engine::wire::{
    AoOption, HEADROOM, MacHeader, PacketBuf, Segment, checksum_ok, clamp_mss, fill_checksum,
    icmp_checksum_ok, insert_ao, kind, mac_header, options, parse_icmp_error, remove_ao,
    set_icmp_mtu, set_mac, strip_options, summarize_options, trim_sack,
};
use proptest::collection::vec;
use proptest::prelude::*;

use super::packets::{Spec, internet_checksum, v4};

const STRIPPED: [u8; 2] = [kind::FAST_OPEN, kind::MPTCP];

/// One option other than TCP-AO, or one octet of padding.
fn option() -> impl Strategy<Value = Vec<u8>> {
    let blob = |kind: u8, lengths: std::ops::RangeInclusive<usize>| {
        vec(any::<u8>(), lengths).prop_map(move |value| {
            [vec![kind, u8::try_from(value.len() + 2).unwrap()], value].concat()
        })
    };
    prop_oneof![
        4 => Just(vec![kind::NOP]),
        1 => blob(kind::MSS, 2..=2),
        1 => blob(3, 1..=1),
        1 => Just(vec![4, 2]),
        2 => blob(8, 8..=8),
        3 => (1usize..=4).prop_flat_map(move |blocks| blob(kind::SACK, 8 * blocks..=8 * blocks)),
        1 => blob(kind::FAST_OPEN, 0..=16),
        1 => blob(kind::MPTCP, 2..=20),
        1 => blob(200, 0..=38),
    ]
}

/// A list of at most `most` octets, ended by NOPs or by an end-of-list option and junk.
fn option_list(most: usize) -> impl Strategy<Value = Vec<u8>> {
    (vec(option(), 0..8), any::<bool>(), any::<[u8; 3]>()).prop_map(move |(parts, end, junk)| {
        let mut list = Vec::new();
        for part in parts {
            if list.len() + part.len() <= most {
                list.extend(part);
            }
        }
        if end && !list.len().is_multiple_of(4) {
            list.push(kind::END);
            list.extend(junk);
            list.truncate(list.len() / 4 * 4);
        }
        while !list.len().is_multiple_of(4) {
            list.push(kind::NOP);
        }
        list
    })
}

/// IPv4 options, or extension headers and the first next-header value.
fn extra(v6: bool) -> impl Strategy<Value = (u8, Vec<u8>)> {
    let choices = if v6 {
        vec![
            (6, vec![]),
            (60, vec![6, 0, 1, 4, 0, 0, 0, 0]),
            (0, vec![43, 0, 5, 2, 0, 0, 1, 0, 6, 0, 4, 0, 0, 0, 0, 0]),
        ]
    } else {
        vec![(6, vec![]), (6, vec![7, 7, 4, 0, 0, 0, 0, 0])]
    };
    proptest::sample::select(choices)
}

fn spec_with(most_options: usize) -> impl Strategy<Value = Spec> {
    any::<bool>().prop_flat_map(move |v6| {
        let payload = prop_oneof![vec(any::<u8>(), 0..20), vec(any::<u8>(), 1400..1500)];
        (extra(v6), any::<u8>(), option_list(most_options), payload).prop_map(
            move |((first_header, extra), flags, options, payload)| Spec {
                v6,
                extra,
                first_header,
                flags,
                options,
                payload,
            },
        )
    })
}

/// A packet in a junk-filled buffer.
struct Fixture {
    storage: Vec<u8>,
    headroom: usize,
}

impl Fixture {
    fn new(packet: &[u8], headroom: usize) -> Self {
        Self {
            storage: [&vec![0xee; headroom][..], packet].concat(),
            headroom,
        }
    }

    fn buf(&mut self) -> PacketBuf<'_> {
        let end = self.storage.len();
        PacketBuf::new(&mut self.storage, self.headroom, end).unwrap()
    }
}

/// All that may be asked of a packet; the results do not matter.
fn exercise(packet: &[u8], headroom: usize, ao: AoOption) {
    let mut packet = packet.to_vec();
    if let Ok(error) = parse_icmp_error(&packet) {
        let _ = icmp_checksum_ok(&packet, &error);
        set_icmp_mtu(&mut packet, &error, 1300);
    }
    let Ok(segment) = Segment::parse(&packet) else {
        return;
    };
    let _ = checksum_ok(&packet, &segment);
    let _ = (segment.seq_len(), options(&packet, &segment).count());
    let found = summarize_options(&packet, &segment)
        .ok()
        .and_then(|one| one.ao);
    for ao in [ao].into_iter().chain(found) {
        let mut header = MacHeader::default();
        mac_header(&packet, &segment, &ao, 1, true, &mut header);
        mac_header(&packet, &segment, &ao, 1, false, &mut header);
        let _ = ao.mac(&packet);
        set_mac(
            &mut packet.clone(),
            &ao,
            &Mac::truncated(&[7; 16], ao.mac_len()),
        );
        // The list as it is, then after other edits.
        for first in 0..4 {
            let mut fixture = Fixture::new(&packet, headroom);
            let mut buf = fixture.buf();
            let mut segment = segment;
            match first {
                0 => {}
                1 => _ = trim_sack(&mut buf, &mut segment, ao.len),
                2 => _ = strip_options(&mut buf, &mut segment, &STRIPPED),
                _ => remove_ao(&mut buf, &mut segment, &ao),
            }
            clamp_mss(buf.bytes_mut(), &segment, 1000);
            let inserted = insert_ao(&mut buf, &mut segment, 1, 2, ao.mac_len());
            fill_checksum(buf.bytes_mut(), &segment);
            assert_eq!(Segment::parse(buf.bytes()), Ok(segment));
            if let Ok(ao) = inserted {
                remove_ao(&mut buf, &mut segment, &ao);
            }
            assert_eq!(Segment::parse(buf.bytes()), Ok(segment));
        }
    }
}

/// An option at any place, for functions that trust the caller.
fn any_ao() -> impl Strategy<Value = AoOption> {
    let offset = prop_oneof![0usize..200, Just(usize::MAX / 2)];
    (offset, 0usize..300).prop_map(|(offset, len)| AoOption {
        offset,
        len,
        key_id: 1,
        rnext_key_id: 2,
    })
}

/// Real options, each with its octets.
fn contents(packet: &[u8], segment: &Segment) -> Vec<Vec<u8>> {
    options(packet, segment)
        .map(|option| option.unwrap())
        .map(|option| packet[option.offset..option.offset + option.len].to_vec())
        .collect()
}

/// Fields that no edit may change: all but lengths, offsets and checksums.
fn identity(packet: &[u8], segment: &Segment) -> Vec<u8> {
    let mut ip = packet[..segment.tcp_offset()].to_vec();
    if segment.src.is_ipv4() {
        assert_eq!(internet_checksum(&ip), [0, 0], "IPv4 header checksum");
        ip[2..4].fill(0);
        ip[10..12].fill(0);
    } else {
        ip[4..6].fill(0);
    }
    let mut tcp = packet[segment.tcp_offset()..segment.options_offset()].to_vec();
    tcp[12] &= 0x0f;
    tcp[16..18].fill(0);
    [&ip[..], &tcp, segment.payload(packet)].concat()
}

/// What a MAC covers, whole.
fn mac_input(packet: &[u8], segment: &Segment, ao: &AoOption, include_options: bool) -> Vec<u8> {
    let mut header = MacHeader::default();
    mac_header(packet, segment, ao, 7, include_options, &mut header);
    [header.as_bytes(), segment.payload(packet)].concat()
}

/// Signs a packet with a made-up MAC; `None` when the option does not fit.
fn signed(spec: &Spec, mac_len: usize) -> Option<(Vec<u8>, AoOption)> {
    let mut fixture = Fixture::new(&spec.build(), HEADROOM);
    let mut buf = fixture.buf();
    let mut segment = Segment::parse(buf.bytes()).unwrap();
    let ao = insert_ao(&mut buf, &mut segment, 61, 84, mac_len).ok()?;
    set_mac(buf.bytes_mut(), &ao, &Mac::truncated(&[0xaa; 16], mac_len));
    fill_checksum(buf.bytes_mut(), &segment);
    Some((buf.bytes().to_vec(), ao))
}

fn mac_len() -> impl Strategy<Value = usize> {
    prop_oneof![Just(12), Just(16)]
}

proptest! {
    #[test]
    fn junk_never_panics(
        mut packet in vec(any::<u8>(), 0..200),
        version in proptest::sample::select(vec![0x45, 0x46, 0x4f, 0x60, 0]),
        headroom in 0usize..40,
        ao in any_ao(),
    ) {
        if let Some(first) = packet.first_mut() {
            *first = if version == 0 { *first } else { version };
        }
        exercise(&packet, headroom, ao);
    }

    #[test]
    fn damaged_packets_never_panic(
        spec in spec_with(40),
        inner in option_list(40),
        damage in vec((0usize..160, any::<u8>()), 0..6),
        cut in proptest::option::weighted(0.2, 0usize..200),
        headroom in 0usize..40,
        ao in any_ao(),
    ) {
        let tcp = spec.build();
        let quoted = Spec { options: inner, ..v4() }.build();
        let icmp = v4().ip(1, &[&[3, 4, 0, 0, 0, 0, 5, 0xdc][..], &quoted].concat());
        for mut packet in [tcp, icmp] {
            for (at, value) in &damage {
                if let Some(octet) = packet.get_mut(*at) {
                    *octet = *value;
                }
            }
            packet.truncate(cut.unwrap_or(usize::MAX));
            exercise(&packet, headroom, ao);
        }
    }

    #[test]
    fn a_segment_of_another_packet_never_panics(
        spec in spec_with(40),
        other in spec_with(40),
        len in 0usize..120,
        ao in any_ao(),
    ) {
        let segment = Segment::parse(&spec.build()).unwrap();
        let mut packet = other.build();
        packet.truncate(len);
        let _ = checksum_ok(&packet, &segment);
        fill_checksum(&mut packet, &segment);
        let _ = summarize_options(&packet, &segment);
        mac_input(&packet, &segment, &ao, true);
        mac_input(&packet, &segment, &ao, false);
        let mut fixture = Fixture::new(&packet, HEADROOM);
        for edit in 0..4 {
            let (mut buf, mut segment) = (fixture.buf(), segment);
            match edit {
                0 => _ = insert_ao(&mut buf, &mut segment, 1, 2, 12),
                1 => remove_ao(&mut buf, &mut segment, &ao),
                2 => _ = trim_sack(&mut buf, &mut segment, 16),
                _ => _ = strip_options(&mut buf, &mut segment, &STRIPPED),
            }
            let _ = (segment.payload_len(), segment.payload(buf.bytes()));
        }
    }

    #[test]
    fn checksums_agree_with_the_plain_way(spec in spec_with(40), at in any::<prop::sample::Index>()) {
        let built = spec.build();
        let segment = Segment::parse(&built).unwrap();
        prop_assert!(checksum_ok(&built, &segment));
        let mut filled = built.clone();
        filled[segment.tcp_offset() + 16..][..2].fill(0x5a);
        fill_checksum(&mut filled, &segment);
        prop_assert_eq!(&filled, &built);
        let at = segment.tcp_offset() + at.index(built.len() - segment.tcp_offset());
        filled[at] ^= 0x10;
        prop_assert!(!checksum_ok(&filled, &segment));
    }

    #[test]
    fn inserting_and_removing_ao_leaves_the_segment(spec in spec_with(40), mac_len in mac_len()) {
        let original = spec.build();
        let before = Segment::parse(&original).unwrap();
        let mut fixture = Fixture::new(&original, HEADROOM);
        let mut buf = fixture.buf();
        let mut segment = before;
        let real: usize = contents(&original, &before).iter().map(Vec::len).sum();
        let Ok(ao) = insert_ao(&mut buf, &mut segment, 61, 84, mac_len) else {
            // Refused only when even without any padding there is no room, and then unchanged.
            prop_assert!(real.next_multiple_of(4) + 4 + mac_len > 40);
            prop_assert_eq!(buf.bytes(), original);
            return Ok(());
        };
        prop_assert_eq!(Segment::parse(buf.bytes()), Ok(segment));
        prop_assert_eq!(identity(buf.bytes(), &segment), identity(&original, &before));
        prop_assert_eq!(summarize_options(buf.bytes(), &segment).unwrap().ao, Some(ao));
        prop_assert_eq!(ao.offset + ao.len, segment.payload_offset());
        prop_assert_eq!(ao.mac(buf.bytes()), &[0; 16][..mac_len]);
        prop_assert!(segment.options_len() <= before.options_len() + 4 + mac_len);
        let mut expected = contents(&original, &before);
        let signed = contents(buf.bytes(), &segment);
        prop_assert_eq!(&signed[..signed.len() - 1], &expected[..]);

        remove_ao(&mut buf, &mut segment, &ao);
        prop_assert_eq!(Segment::parse(buf.bytes()), Ok(segment));
        prop_assert_eq!(identity(buf.bytes(), &segment), identity(&original, &before));
        prop_assert_eq!(contents(buf.bytes(), &segment), core::mem::take(&mut expected));
        prop_assert!(segment.options_len() <= before.options_len());
    }

    #[test]
    fn every_covered_octet_counts(
        spec in spec_with(24),
        mac_len in mac_len(),
        include_options: bool,
        at in any::<prop::sample::Index>(),
        bit in 0u32..8,
    ) {
        let Some((packet, ao)) = signed(&spec, mac_len) else { return Ok(()) };
        let segment = Segment::parse(&packet).unwrap();
        let input = mac_input(&packet, &segment, &ao, include_options);
        let at = at.index(packet.len());
        let mut changed = packet.clone();
        changed[at] ^= 1 << bit;

        let tcp = segment.tcp_offset();
        let checksum = tcp + 16..tcp + 18;
        let mac = ao.offset + 4..ao.offset + ao.len;
        let addresses = if spec.v6 { 8..40 } else { 12..20 };
        if checksum.contains(&at) || mac.contains(&at) {
            prop_assert_eq!(mac_input(&changed, &segment, &ao, include_options), input);
        } else if (segment.options_offset()..ao.offset).contains(&at) && !include_options {
            prop_assert_eq!(mac_input(&changed, &segment, &ao, false), input);
        } else if at >= tcp || addresses.contains(&at) {
            let reread = Segment::parse(&changed).ok().and_then(|segment| {
                let ao = summarize_options(&changed, &segment).ok()?.ao?;
                Some(mac_input(&changed, &segment, &ao, include_options))
            });
            // Refused, or covered by the MAC.
            prop_assert_ne!(reread, Some(input));
        }
    }

    #[test]
    fn stripping_takes_what_it_names(spec in spec_with(40)) {
        let original = spec.build();
        let before = Segment::parse(&original).unwrap();
        let mut fixture = Fixture::new(&original, 0);
        let mut buf = fixture.buf();
        let mut segment = before;
        let mut expected = contents(&original, &before);
        let count = expected.len();
        expected.retain(|option| !STRIPPED.contains(&option[0]));
        let stripped = strip_options(&mut buf, &mut segment, &STRIPPED);
        prop_assert_eq!(stripped, expected.len() != count);
        prop_assert_eq!(Segment::parse(buf.bytes()), Ok(segment));
        prop_assert_eq!(identity(buf.bytes(), &segment), identity(&original, &before));
        prop_assert_eq!(contents(buf.bytes(), &segment), expected);
    }

    #[test]
    fn trimmed_segments_take_ao(spec in spec_with(40), mac_len in mac_len()) {
        let original = spec.build();
        let before = Segment::parse(&original).unwrap();
        let mut fixture = Fixture::new(&original, HEADROOM);
        let mut buf = fixture.buf();
        let mut segment = before;
        let fits = trim_sack(&mut buf, &mut segment, 4 + mac_len);
        prop_assert_eq!(Segment::parse(buf.bytes()), Ok(segment));
        prop_assert_eq!(identity(buf.bytes(), &segment), identity(&original, &before));

        let without_sack = |packet: &[u8], segment: &Segment| {
            let mut list = contents(packet, segment);
            list.retain(|option| option[0] != kind::SACK);
            list
        };
        let others = without_sack(&original, &before);
        prop_assert_eq!(&others, &without_sack(buf.bytes(), &segment));
        let room: usize = others.iter().map(Vec::len).sum::<usize>().next_multiple_of(4);
        prop_assert_eq!(fits, room + 4 + mac_len <= 40);

        let blocks = |packet: &[u8], segment: &Segment| {
            let mut list = contents(packet, segment);
            list.retain(|option| option[0] == kind::SACK);
            list.iter().map(|option| option[2..].to_vec()).collect::<Vec<_>>()
        };
        // What is left of the blocks is their beginning.
        let (all, left) = (blocks(&original, &before), blocks(buf.bytes(), &segment));
        if let ([all], [left]) = (&all[..], &left[..]) {
            prop_assert!(all.starts_with(left));
        }
        if fits {
            prop_assert!(insert_ao(&mut buf, &mut segment, 1, 2, mac_len).is_ok());
        } else {
            prop_assert_eq!(buf.bytes(), original);
        }
    }
}
