//! The rendered rules, word for word: any change of them must be meant.

use ao_sys::xtables::Family;

use super::ruleset::tests::{QUEUES, spec};
use super::{Role, Ruleset, nft, xt};
use crate::settings::Backend;

fn ruleset() -> Ruleset {
    let mut hops = spec("as64503 (hops)", "10.0.0.3");
    hops.ttl_min = 255;
    hops.local = Some("10.0.0.1".parse().unwrap());
    let mut net = spec("net", "10.1.0.0/16");
    net.ports = 1790..=1799;
    let mut in_vrf = spec("vrf", "10.0.0.2");
    in_vrf.vrf = Some("red".into());
    let mut link_local = spec("link", "fe80::2");
    link_local.interface = Some("eth0".into());
    let mut kernel_hops = spec("kernel-hops", "10.2.0.2");
    kernel_hops.ttl_min = 255;
    let userspace = [
        spec("as64502", "10.0.0.2"),
        hops,
        net,
        in_vrf,
        link_local,
        spec("net6", "2001:db8::/33"),
        spec("in-kernel-net", "10.2.0.3"),
    ];
    let kernel = [
        kernel_hops,
        spec("in-net", "10.1.0.2"),
        spec("kernel-net", "10.2.0.0/16"),
        spec("in-net6", "2001:db8::2"),
    ];
    let peers = userspace
        .iter()
        .map(|spec| (spec, Backend::Userspace))
        .chain(kernel.iter().map(|spec| (spec, Backend::Kernel)));
    Ruleset::new(peers, QUEUES, 0x0400_0000)
        .unwrap()
        .with_vrfs(vec!["red".into()])
}

#[track_caller]
fn assert_text(rendered: &str, expected: &str) {
    assert!(
        rendered == expected,
        "rendered:\n{rendered}\nexpected:\n{expected}"
    );
}

#[test]
fn nftables_queue_rules() {
    assert_text(
        &nft::render(Role::Queue, &ruleset()),
        include_str!("snapshots/queue.nft"),
    );
}

#[test]
fn nftables_guard() {
    assert_text(
        &nft::render(Role::Guard, &ruleset()),
        include_str!("snapshots/guard.nft"),
    );
}

#[test]
fn iptables_queue_rules() {
    let rendered = xt::render_text(Role::Queue, Family::V4, &ruleset());
    assert_text(&rendered, include_str!("snapshots/queue.iptables"));
}

#[test]
fn iptables_guard() {
    let rendered = xt::render_text(Role::Guard, Family::V4, &ruleset());
    assert_text(&rendered, include_str!("snapshots/guard.iptables"));
}

#[test]
fn ip6tables_queue_rules() {
    let rendered = xt::render_text(Role::Queue, Family::V6, &ruleset());
    assert_text(&rendered, include_str!("snapshots/queue.ip6tables"));
}

#[test]
fn ip6tables_guard() {
    let rendered = xt::render_text(Role::Guard, Family::V6, &ruleset());
    assert_text(&rendered, include_str!("snapshots/guard.ip6tables"));
}
