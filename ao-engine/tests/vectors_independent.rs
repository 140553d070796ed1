//! Known answers for what RFC 9235 has no vectors for: SHA-256, and AES master keys of 16 octets,
//! which are used as they are. They come from Python's hashlib and from the openssl command:
//!
//! ```python
//! import hmac, hashlib, socket, struct, subprocess
//!
//! v4 = [socket.inet_aton(a) for a in ("192.0.2.1", "198.51.100.2")]
//! v6 = [socket.inet_pton(socket.AF_INET6, a) for a in ("2001:db8::1", "2001:db8::2")]
//! message = bytes(range(64)) + bytes(range(100))
//!
//! def kdf_input(src, dst, bits):
//!     context = src + dst + struct.pack(">HHII", 50000, 179, 0x01020304, 0xfffefdfc)
//!     return b"\x01TCP-AO" + context + struct.pack(">H", bits)
//!
//! def sha256(key, data):
//!     return hmac.new(key, data, hashlib.sha256).digest()
//!
//! def cmac(key, data):
//!     return bytes.fromhex(subprocess.run(
//!         ["openssl", "mac", "-cipher", "AES-128-CBC", "-macopt", "hexkey:" + key.hex(),
//!          "-in", "-", "CMAC"], input=data, capture_output=True).stdout.decode())
//!
//! for master in (b"testvector", bytes(range(80))):
//!     for src, dst in (v4, v6):
//!         key = sha256(master, kdf_input(src, dst, 256))
//!         print(key.hex(), sha256(key, message)[:16].hex())
//!
//! for master in (bytes(range(15)), bytes(range(16)), bytes(range(17))):
//!     aes = master if len(master) == 16 else cmac(bytes(16), master)
//!     key = cmac(aes, kdf_input(*v4, 128))
//!     print(key.hex(), cmac(key, message)[:12].hex())
//! ```
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fmt::Write;

use ao_engine::crypto::{
    Algorithm, KdfContext, MacJob, MacProvider, MasterKey, RustCrypto, derive,
};

const V4: [&str; 2] = ["192.0.2.1", "198.51.100.2"];
const V6: [&str; 2] = ["2001:db8::1", "2001:db8::2"];

fn hex(octets: &[u8]) -> String {
    octets.iter().fold(String::new(), |mut text, octet| {
        write!(text, "{octet:02x}").unwrap();
        text
    })
}

fn key_and_mac(algorithm: Algorithm, master: &[u8], [src, dst]: [&str; 2]) -> [String; 2] {
    let context = KdfContext {
        src: src.parse().unwrap(),
        dst: dst.parse().unwrap(),
        src_port: 50000,
        dst_port: 179,
        src_isn: 0x0102_0304,
        dst_isn: 0xfffe_fdfc,
    };
    let traffic_key = derive(algorithm, &MasterKey::new(master).unwrap(), &context);
    let key = RustCrypto.prepare(algorithm, &traffic_key);
    let (header, payload): (Vec<u8>, Vec<u8>) = ((0..64).collect(), (0..100).collect());
    let mut jobs = [MacJob::new(&key, &header, &payload)];
    RustCrypto.compute(&mut jobs);
    assert_eq!(traffic_key.as_bytes().len(), algorithm.traffic_key_len());
    assert_eq!(jobs[0].mac.as_bytes().len(), algorithm.mac_len());
    [hex(traffic_key.as_bytes()), hex(jobs[0].mac.as_bytes())]
}

#[test]
fn sha256() {
    let long: Vec<u8> = (0..80).collect();
    let short = b"testvector".to_vec();
    for (master, addresses, key, mac) in [
        (
            &short,
            V4,
            "d640c28f8bbfb034b8bcd802168e96d25adfd991edc9a6390d5bfe9f3754d1a7",
            "8da86c42f53456a963254d21e2d5014e",
        ),
        (
            &short,
            V6,
            "85006f1d468b71ab7c186fdbddda20e16a6d56efe9b0c718259e8bfb3d21f397",
            "5bf1f4f7d191aa9dbc14d5ca5d4cda63",
        ),
        (
            &long,
            V4,
            "4e2473428905b54691149f3755cc8e2bfffab3eea699e18fb6a832993d966be0",
            "9029c0590f79b2491515568ee974cae3",
        ),
        (
            &long,
            V6,
            "56f29a0099f66db7128521005b27d3354c17bc036628e87afaf705c64c1175ac",
            "57061028ff488861bf3b914ef5bfdc3d",
        ),
    ] {
        assert_eq!(
            key_and_mac(Algorithm::HmacSha256_128, master, addresses),
            [key, mac]
        );
        assert_eq!(
            key_and_mac(Algorithm::HmacSha256_96, master, addresses),
            [key, &mac[..24]]
        );
    }
}

#[test]
fn aes_master_keys_of_15_16_and_17_octets() {
    for (len, key, mac) in [
        (
            15,
            "80856fbb539edbf9bfe7b45bc7fc6e9c",
            "b8223f91cbb2dbb731160054",
        ),
        (
            16,
            "f59a01d44aa733484bebd81952d46beb",
            "58ed2ecdd37da2e8347a5f47",
        ),
        (
            17,
            "4a455e1cc31e0b5ea48b77969b1fd1c3",
            "0e258876c395caf98772232b",
        ),
    ] {
        let master: Vec<u8> = (0..len).collect();
        assert_eq!(
            key_and_mac(Algorithm::Aes128Cmac96, &master, V4),
            [key, mac]
        );
    }
}
