//! Packets one by one: the cases the specifications name.

use ao_engine::reason::DropReason;
use ao_engine::wire::{
    AoOption, Flags, HEADROOM, MacHeader, OptionsError, PacketBuf, ParseError, Segment,
    checksum_ok, clamp_mss, fill_checksum, insert_ao, kind, mac_header, options, remove_ao,
    strip_options, summarize_options, trim_sack,
};

use super::packets::{ACK, SEQ, Spec, v4, v6};

const TIMESTAMPS: [u8; 12] = [1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8];

#[test]
fn fields_of_a_plain_segment() {
    for spec in [v4(), v6()] {
        let packet = Spec {
            flags: 0x13,
            options: TIMESTAMPS.to_vec(),
            ..spec.clone()
        }
        .build();
        let segment = Segment::parse(&packet).unwrap();
        assert_eq!([segment.src, segment.dst], spec.addresses());
        assert_eq!((segment.src_port, segment.dst_port), (50000, 179));
        assert_eq!((segment.seq, segment.ack, segment.ttl), (SEQ, ACK, 64));
        assert_eq!(segment.flags, Flags(0x13));
        assert!(segment.flags.syn() && segment.flags.fin() && segment.flags.ack());
        assert!(!segment.flags.rst() && !segment.flags.psh());
        assert_eq!((segment.header_len(), segment.options_len()), (32, 12));
        assert_eq!(segment.tcp_offset(), if spec.v6 { 40 } else { 20 });
        assert_eq!(segment.total_len(), packet.len());
        assert_eq!(segment.payload(&packet), b"payload");
        assert_eq!((segment.payload_len(), segment.seq_len()), (7, 9));
        assert!(checksum_ok(&packet, &segment));
    }
}

fn refusal(packet: &[u8]) -> (ParseError, DropReason) {
    let error = Segment::parse(packet).unwrap_err();
    (error, error.reason())
}

#[test]
fn lengths_must_be_exact() {
    for spec in [v4(), v6()] {
        let packet = spec.build();
        let longer = [&packet[..], &[0]].concat();
        assert_eq!(
            refusal(&longer),
            (ParseError::Length, DropReason::Malformed)
        );
        for len in 0..packet.len() {
            assert_eq!(refusal(&packet[..len]).1, DropReason::Malformed, "{len}");
        }
    }
    let mut offset_below_5 = v4().build();
    offset_below_5[20 + 12] = 0x40;
    assert_eq!(refusal(&offset_below_5).0, ParseError::Length);
    let mut offset_beyond = v4().build();
    offset_beyond[20 + 12] = 0x70;
    assert_eq!(refusal(&offset_beyond).0, ParseError::Length);
    let mut jumbogram = v6().build();
    jumbogram[4..6].copy_from_slice(&[0, 0]);
    assert_eq!(refusal(&jumbogram).0, ParseError::Length);
}

#[test]
fn other_protocols_and_versions() {
    assert_eq!(refusal(&v4().ip(17, &[0; 40])).0, ParseError::Protocol);
    assert_eq!(refusal(&v6().ip(17, &[0; 40])).0, ParseError::Protocol);
    // Authentication Header and ESP hide or cover what follows.
    assert_eq!(refusal(&v6().ip(51, &[6; 40])).1, DropReason::Malformed);
    assert_eq!(refusal(&v6().ip(50, &[6; 40])).1, DropReason::Malformed);
    let mut version_5 = v4().build();
    version_5[0] = 0x55;
    assert_eq!(refusal(&version_5).0, ParseError::Version);
}

#[test]
fn v4_fragments() {
    for (octets, refused) in [
        ([0x20, 0], true),
        ([0, 1], true),
        ([0x1f, 0xff], true),
        ([0x40, 0], false),
    ] {
        let mut packet = v4().build();
        packet[6..8].copy_from_slice(&octets);
        let fragment = Segment::parse(&packet).map_err(ParseError::reason);
        assert_eq!(fragment.is_err(), refused);
        assert!(fragment.is_ok() || fragment == Err(DropReason::Fragment));
    }
}

#[test]
fn v4_options() {
    let with = |extra: &[u8]| {
        Spec {
            extra: extra.to_vec(),
            ..v4()
        }
        .build()
    };
    let record_route = with(&[7, 7, 4, 0, 0, 0, 0, 1]);
    let segment = Segment::parse(&record_route).unwrap();
    assert_eq!(segment.tcp_offset(), 28);
    assert!(checksum_ok(&record_route, &segment));
    for source_route in [131, 137] {
        let packet = with(&[1, source_route, 7, 4, 10, 0, 0, 1]);
        assert_eq!(refusal(&packet).1, DropReason::ExtensionHeader);
    }
    // After the end of the list there are no options.
    assert!(Segment::parse(&with(&[0, 131, 7, 4])).is_ok());
    assert_eq!(refusal(&with(&[7, 1, 0, 0])).0, ParseError::Headers);
    assert_eq!(refusal(&with(&[7, 5, 0, 0])).0, ParseError::Headers);
    assert_eq!(refusal(&with(&[1, 1, 1, 7])).0, ParseError::Headers);
}

#[test]
fn v6_extension_headers() {
    let with = |first_header, extra: &[u8]| {
        Spec {
            first_header,
            extra: extra.to_vec(),
            ..v6()
        }
        .build()
    };
    // Hop-by-hop with router alert, destination options with padding, used-up segment routing.
    let harmless = with(
        0,
        &[
            &[60, 0, 5, 2, 0, 0, 1, 0][..],
            &[43, 0, 1, 4, 0, 0, 0, 0],
            &[6, 0, 4, 0, 0, 0, 0, 0],
        ]
        .concat(),
    );
    let segment = Segment::parse(&harmless).unwrap();
    assert_eq!(segment.tcp_offset(), 64);
    assert!(checksum_ok(&harmless, &segment));

    for (first, extra, reason) in [
        // Fragment headers: first, later, last and atomic.
        (44, vec![6, 0, 0, 1, 0, 0, 0, 9], DropReason::Fragment),
        (44, vec![6, 0, 0, 8, 0, 0, 0, 9], DropReason::Fragment),
        (44, vec![6, 0, 0, 0, 0, 0, 0, 9], DropReason::Fragment),
        (
            0,
            vec![44, 0, 1, 4, 0, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0, 9],
            DropReason::Fragment,
        ),
        // Routing headers: segments left, type 0, type 2.
        (
            43,
            vec![6, 0, 4, 1, 0, 0, 0, 0],
            DropReason::ExtensionHeader,
        ),
        (
            43,
            vec![6, 0, 0, 0, 0, 0, 0, 0],
            DropReason::ExtensionHeader,
        ),
        (
            43,
            vec![6, 0, 2, 0, 0, 0, 0, 0],
            DropReason::ExtensionHeader,
        ),
        // Home address.
        (
            60,
            [&[6, 2, 1, 2, 0, 0, 0xc9, 16][..], &[0; 16]].concat(),
            DropReason::ExtensionHeader,
        ),
        // Jumbo payload, hop-by-hop not first, options past the end, header past the end.
        (0, vec![6, 0, 0xc2, 4, 0, 1, 0, 0], DropReason::Malformed),
        (
            60,
            vec![0, 0, 1, 4, 0, 0, 0, 0, 6, 0, 1, 4, 0, 0, 0, 0],
            DropReason::Malformed,
        ),
        (60, vec![6, 0, 1, 5, 0, 0, 0, 0], DropReason::Malformed),
        (60, vec![6, 200, 1, 4, 0, 0, 0, 0], DropReason::Malformed),
        // No next header, AH.
        (60, vec![59, 0, 1, 4, 0, 0, 0, 0], DropReason::Malformed),
        (60, vec![51, 0, 1, 4, 0, 0, 0, 0], DropReason::Malformed),
    ] {
        assert_eq!(refusal(&with(first, &extra)).1, reason, "{first} {extra:?}");
    }
}

fn summary(list: &[u8]) -> Result<(Option<AoOption>, bool, Option<u16>), OptionsError> {
    let packet = Spec {
        options: list.to_vec(),
        ..v4()
    }
    .build();
    let segment = Segment::parse(&packet).unwrap();
    summarize_options(&packet, &segment).map(|one| (one.ao, one.md5, one.mss))
}

#[test]
fn options_are_summarized() {
    assert_eq!(summary(&[]), Ok((None, false, None)));
    assert_eq!(summary(&[2, 4, 5, 0xb4]), Ok((None, false, Some(1460))));
    let ao = |offset, len| {
        Some(AoOption {
            offset,
            len,
            key_id: 61,
            rnext_key_id: 84,
        })
    };
    assert_eq!(
        summary(&[1, 29, 4, 61, 84, 0, 0, 0]),
        Ok((ao(41, 4), false, None))
    );
    assert_eq!(
        summary(&[29, 7, 61, 84, 9, 9, 9, 1]),
        Ok((ao(40, 7), false, None))
    );
    let md5 = [&[19, 18][..], &[0; 16], &[1, 1]].concat();
    assert_eq!(summary(&md5), Ok((None, true, None)));

    for (list, error) in [
        (vec![29, 3, 61, 1], OptionsError::Malformed),
        (vec![29, 2, 1, 1], OptionsError::Malformed),
        (vec![1, 1, 1, 29], OptionsError::Malformed),
        (vec![1, 29, 4, 61], OptionsError::Malformed),
        (vec![8, 0, 0, 0], OptionsError::Malformed),
        (vec![8, 1, 0, 0], OptionsError::Malformed),
        (vec![29, 4, 1, 1, 29, 4, 1, 1], OptionsError::DuplicateAo),
        ([&[29, 4, 1, 1][..], &md5].concat(), OptionsError::AoWithMd5),
        ([&md5[..], &[29, 4, 1, 1]].concat(), OptionsError::AoWithMd5),
    ] {
        assert_eq!(summary(&list), Err(error), "{list:?}");
    }
    // What stands after the end of the list is not an option.
    assert_eq!(summary(&[0, 29, 4, 1, 8, 0, 0, 0]), Ok((None, false, None)));
    assert_eq!(
        OptionsError::Malformed.reason(),
        DropReason::MalformedOptions
    );
    assert_eq!(OptionsError::DuplicateAo.reason(), DropReason::DuplicateAo);
    assert_eq!(OptionsError::AoWithMd5.reason(), DropReason::AoWithMd5);
}

/// Applies an edit to a segment with these options and returns the options after it.
fn edited<R>(
    list: &[u8],
    edit: impl FnOnce(&mut PacketBuf<'_>, &mut Segment) -> R,
) -> (R, Vec<u8>) {
    let mut storage = [
        &[0xee; HEADROOM][..],
        &Spec {
            options: list.to_vec(),
            ..v6()
        }
        .build(),
    ]
    .concat();
    let end = storage.len();
    let mut buf = PacketBuf::new(&mut storage, HEADROOM, end).unwrap();
    let mut segment = Segment::parse(buf.bytes()).unwrap();
    let result = edit(&mut buf, &mut segment);
    fill_checksum(buf.bytes_mut(), &segment);
    assert_eq!(Segment::parse(buf.bytes()), Ok(segment));
    assert!(checksum_ok(buf.bytes(), &segment));
    assert_eq!(segment.payload(buf.bytes()), b"payload");
    let options = &buf.bytes()[segment.options_offset()..segment.payload_offset()];
    (result, options.to_vec())
}

#[test]
fn ao_is_appended_last_and_aligned() {
    let ao16 = [&[29, 16, 61, 84][..], &[0; 12]].concat();
    let ao20 = [&[29, 20, 61, 84][..], &[0; 16]].concat();
    let sack = |blocks: u8| [vec![5, 2 + 8 * blocks], vec![7; 8 * usize::from(blocks)]].concat();
    for (before, ao, after) in [
        (vec![], &ao16, vec![]),
        (TIMESTAMPS.to_vec(), &ao20, TIMESTAMPS.to_vec()),
        // Trailing padding of any sort is reused, and so is what stands after the end.
        (vec![3, 3, 7, 0], &ao16, vec![3, 3, 7, 1]),
        (vec![4, 2, 0, 9, 9, 9, 9, 9], &ao16, vec![4, 2, 1, 1]),
        (vec![1; 40], &ao20, vec![]),
        // A full SYN of Linux and 20 octets of TCP-AO are exactly 40.
        (
            [&[2, 4, 5, 0xb4, 4, 2][..], &TIMESTAMPS[2..], &[1, 3, 3, 7]].concat(),
            &ao20,
            [&[2, 4, 5, 0xb4, 4, 2][..], &TIMESTAMPS[2..], &[1, 3, 3, 7]].concat(),
        ),
        // Padding between options gives way when there is no other room.
        (
            [&TIMESTAMPS[..], &[1, 1], &sack(1)].concat(),
            &ao20,
            [&TIMESTAMPS[2..], &sack(1)].concat(),
        ),
    ] {
        let (inserted, list) = edited(&before, |buf, segment| {
            insert_ao(buf, segment, 61, 84, ao.len() - 4)
        });
        let inserted = inserted.unwrap();
        assert_eq!(list, [&after[..], ao].concat(), "{before:?}");
        assert_eq!(
            (inserted.offset, inserted.len),
            (60 + after.len(), ao.len())
        );
    }
}

#[test]
fn ao_is_refused_where_it_does_not_fit() {
    let full = [&[253, 28][..], &[7; 26]].concat();
    let (refused, list) = edited(&full, |buf, segment| insert_ao(buf, segment, 1, 2, 12));
    assert!(refused.is_err());
    assert_eq!(list, full);
    let (refused, _) = edited(&[], |buf, segment| insert_ao(buf, segment, 1, 2, 37));
    assert!(refused.is_err());
    let (refused, _) = edited(&[], |buf, segment| {
        insert_ao(buf, segment, 1, 2, usize::MAX)
    });
    assert!(refused.is_err());
    let (refused, _) = edited(&[8, 0, 0, 0], |buf, segment| {
        insert_ao(buf, segment, 1, 2, 12)
    });
    assert!(refused.is_err());

    // No headroom, and a packet that would outgrow its length field.
    for (headroom, payload) in [(15, 7), (20, 65_535 - 40 - 15)] {
        let spec = Spec {
            payload: vec![3; payload],
            ..v4()
        };
        let mut storage = [vec![0; headroom], spec.build()].concat();
        let end = storage.len();
        let mut buf = PacketBuf::new(&mut storage, headroom, end).unwrap();
        let mut segment = Segment::parse(buf.bytes()).unwrap();
        assert!(insert_ao(&mut buf, &mut segment, 1, 2, 12).is_err());
        assert_eq!(buf.bytes(), spec.build());
    }
}

#[test]
fn ao_is_removed_wherever_it_stands() {
    let ao = |len: u8| [vec![29, len, 61, 84], vec![9; usize::from(len) - 4]].concat();
    for (before, after) in [
        (ao(16), vec![]),
        (
            [&ao(16)[..], &[2, 4, 5, 0xb4]].concat(),
            vec![2, 4, 5, 0xb4],
        ),
        ([&[1, 1][..], &ao(16), &[4, 2]].concat(), vec![4, 2, 1, 1]),
        ([&ao(7)[..], &[1]].concat(), vec![]),
        ([&ao(7)[..], &[3, 3, 7], &[0, 0]].concat(), vec![3, 3, 7, 1]),
        ([&TIMESTAMPS[..], &ao(20)].concat(), TIMESTAMPS.to_vec()),
    ] {
        let (_, list) = edited(&before, |buf, segment| {
            let ao = summarize_options(buf.bytes(), segment).unwrap().ao.unwrap();
            remove_ao(buf, segment, &ao);
        });
        assert_eq!(list, after, "{before:?}");
    }
}

#[test]
fn mss_is_lowered_only() {
    for (list, max, after) in [
        (vec![2, 4, 5, 0xb4], 1444, vec![2, 4, 5, 0xa4]),
        (vec![2, 4, 5, 0xb4], 1460, vec![2, 4, 5, 0xb4]),
        (
            vec![1, 2, 4, 5, 0xb4, 1, 1, 0],
            1000,
            vec![1, 2, 4, 3, 0xe8, 1, 1, 0],
        ),
        (vec![2, 3, 255, 1], 1000, vec![2, 3, 255, 1]),
        (vec![4, 2, 1, 1], 1000, vec![4, 2, 1, 1]),
    ] {
        let (lowered, edited) = edited(&list, |buf, segment| {
            clamp_mss(buf.bytes_mut(), segment, max)
        });
        assert_eq!(edited, after);
        assert_eq!(lowered, after != list);
    }
}

#[test]
fn fast_open_and_mptcp_are_stripped() {
    let kinds = [kind::FAST_OPEN, kind::MPTCP];
    for (list, after) in [
        (vec![34, 2, 1, 1], vec![]),
        (
            vec![2, 4, 5, 0xb4, 1, 1, 34, 10, 1, 2, 3, 4, 5, 6, 7, 8],
            vec![2, 4, 5, 0xb4],
        ),
        (vec![254, 4, 0xf9, 0x89, 4, 2, 1, 1], vec![4, 2, 1, 1]),
        (vec![254, 4, 0xf9, 0x88], vec![254, 4, 0xf9, 0x88]),
        (vec![30, 4, 0, 1, 3, 3, 7, 0], vec![3, 3, 7, 1]),
        (vec![34, 0, 0, 0], vec![34, 0, 0, 0]),
    ] {
        let (stripped, edited) = edited(&list, |buf, segment| strip_options(buf, segment, &kinds));
        assert_eq!(edited, after, "{list:?}");
        assert_eq!(stripped, after != list);
    }
}

#[test]
fn sack_blocks_are_dropped_from_the_end() {
    let sack = |blocks: &[u8]| {
        let octets = blocks.iter().flat_map(|block| [*block; 8]);
        let len = u8::try_from(2 + 8 * blocks.len()).unwrap();
        [5, len].into_iter().chain(octets).collect::<Vec<u8>>()
    };
    let list = |parts: &[&[u8]]| parts.concat();
    for (before, room, fits, after) in [
        // With timestamps and 16 octets of TCP-AO, one block is left.
        (
            list(&[&TIMESTAMPS, &[1, 1], &sack(&[1, 2, 3])]),
            16,
            true,
            list(&[&TIMESTAMPS, &[1, 1], &sack(&[1])]),
        ),
        // Without timestamps two, and nothing is dropped that fits.
        (
            list(&[&[1, 1], &sack(&[1, 2, 3, 4])]),
            16,
            true,
            list(&[&[1, 1], &sack(&[1, 2])]),
        ),
        (
            list(&[&[1, 1], &sack(&[1, 2])]),
            20,
            true,
            list(&[&[1, 1], &sack(&[1, 2])]),
        ),
        // Options after the SACK option stay.
        (
            list(&[&sack(&[1, 2]), &TIMESTAMPS, &[1, 1]]),
            16,
            true,
            list(&[&sack(&[1]), &TIMESTAMPS, &[1, 1]]),
        ),
        // The last block goes with its option.
        (
            list(&[&[2, 4, 5, 0xb4], &sack(&[1]), &[1, 1]]),
            36,
            true,
            vec![2, 4, 5, 0xb4],
        ),
        // No SACK to drop, or not enough.
        (TIMESTAMPS.to_vec(), 32, false, TIMESTAMPS.to_vec()),
        (
            list(&[&TIMESTAMPS, &[1, 1], &sack(&[1])]),
            32,
            false,
            list(&[&TIMESTAMPS, &[1, 1], &sack(&[1])]),
        ),
    ] {
        let (result, edited) = edited(&before, |buf, segment| trim_sack(buf, segment, room));
        assert_eq!(result, fits, "{before:?}");
        assert_eq!(edited, after, "{before:?}");
    }
}

#[test]
fn excluded_options_are_omitted_not_zeroed() {
    let ao = [&[29, 16, 61, 84][..], &[9; 12]].concat();
    let packet = Spec {
        options: [&TIMESTAMPS[..], &ao].concat(),
        ..v4()
    }
    .build();
    let segment = Segment::parse(&packet).unwrap();
    let ao = summarize_options(&packet, &segment).unwrap().ao.unwrap();
    let mut header = MacHeader::default();
    mac_header(&packet, &segment, &ao, 0x0a0b_0c0d, false, &mut header);
    let mut fixed = packet[20..40].to_vec();
    fixed[16..18].fill(0);
    let expected = [
        &[
            0x0a,
            0x0b,
            0x0c,
            0x0d,
            192,
            0,
            2,
            1,
            198,
            51,
            100,
            2,
            0,
            6,
            0,
            48 + 7,
        ][..],
        &fixed,
        &[29, 16, 61, 84],
        &[0; 12],
    ]
    .concat();
    assert_eq!(header.as_bytes(), expected);
    // The header is overwritten whole by the next use.
    mac_header(&packet, &segment, &ao, 0, true, &mut header);
    let expected = [
        &[0, 0, 0, 0, 192, 0, 2, 1, 198, 51, 100, 2, 0, 6, 0, 48 + 7][..],
        &fixed,
        &TIMESTAMPS,
        &[29, 16, 61, 84],
        &[0; 12],
    ]
    .concat();
    assert_eq!(header.as_bytes(), expected);
}

#[test]
fn v6_pseudo_header_says_tcp_behind_extension_headers() {
    let ao = [&[29, 16, 61, 84][..], &[9; 12]].concat();
    let extra = vec![6, 0, 1, 4, 0, 0, 0, 0];
    let packet = Spec {
        options: ao,
        first_header: 60,
        extra,
        ..v6()
    }
    .build();
    let segment = Segment::parse(&packet).unwrap();
    let ao = summarize_options(&packet, &segment).unwrap().ao.unwrap();
    let mut header = MacHeader::default();
    mac_header(&packet, &segment, &ao, 0, true, &mut header);
    assert_eq!(header.as_bytes()[4..36], packet[8..40]);
    assert_eq!(header.as_bytes()[36..44], [0, 0, 0, 36 + 7, 0, 0, 0, 6]);
    assert_eq!(header.as_bytes().len(), 4 + 40 + 36);
}

#[test]
fn iterating_ends_at_the_first_error() {
    let packet = Spec {
        options: vec![4, 2, 8, 1, 4, 2, 1, 1],
        ..v4()
    }
    .build();
    let segment = Segment::parse(&packet).unwrap();
    let found: Vec<_> = options(&packet, &segment)
        .map(|one| one.map(|one| one.offset))
        .collect();
    assert_eq!(found.len(), 2);
    assert_eq!(found[0], Ok(40));
    assert!(found[1].is_err());
}
