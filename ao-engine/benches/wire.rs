//! Cost of reading and editing one full segment of 1,440 octets of payload.

use std::hint::black_box;

use ao_engine::wire::{
    HEADROOM, MacHeader, PacketBuf, Segment, checksum_ok, fill_checksum, insert_ao, mac_header,
    remove_ao, summarize_options,
};
use criterion::{Criterion, criterion_group, criterion_main};

/// An IPv4 packet with timestamps and 1,440 octets of payload; its checksums do not matter.
fn packet() -> Vec<u8> {
    let ip = [
        0x45, 0, 0x05, 0xd4, 0, 0, 0x40, 0, 64, 6, 0, 0, 192, 0, 2, 1, 198, 51, 100, 2,
    ];
    let tcp = [
        0xc3, 0x50, 0, 179, 1, 2, 3, 4, 5, 6, 7, 8, 0x80, 0x10, 1, 0, 0, 0, 0, 0,
    ];
    let timestamps = [1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8];
    [&ip[..], &tcp, &timestamps, &[0xa5; 1440]].concat()
}

fn wire(c: &mut Criterion) {
    let mut storage = [&[0; HEADROOM][..], &packet()].concat();
    let end = storage.len();
    let Some(mut buf) = PacketBuf::new(&mut storage, HEADROOM, end) else {
        return;
    };
    let Ok(mut segment) = Segment::parse(buf.bytes()) else {
        return;
    };

    c.bench_function("parse", |b| {
        b.iter(|| {
            let segment = Segment::parse(black_box(buf.bytes()))?;
            Ok::<_, ao_engine::wire::ParseError>((
                summarize_options(black_box(buf.bytes()), &segment),
                segment,
            ))
        });
    });
    c.bench_function("checksum_ok", |b| {
        b.iter(|| checksum_ok(black_box(buf.bytes()), &segment));
    });
    c.bench_function("fill_checksum", |b| {
        b.iter(|| fill_checksum(black_box(buf.bytes_mut()), &segment));
    });
    c.bench_function("insert_ao, mac_header, remove_ao", |b| {
        b.iter(|| {
            let ao = insert_ao(black_box(&mut buf), &mut segment, 1, 2, 12)?;
            let mut header = MacHeader::default();
            mac_header(buf.bytes(), &segment, &ao, 0, true, &mut header);
            black_box(&header);
            remove_ao(&mut buf, &mut segment, &ao);
            Ok::<_, ao_engine::wire::NoOptionSpace>(())
        });
    });
}

criterion_group!(benches, wire);
criterion_main!(benches);
