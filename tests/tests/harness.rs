//! The harness proves itself: the daemons' sessions come up unprotected, and it can fail.

use ao_tests::daemon::{self, Implementation, Speaker, assert_never_down, wait_converged};
use ao_tests::settings::CONVERGENCE;
use ao_tests::topology::{Family, Lan};

fn comes_up(first: Implementation, second: Implementation) {
    for family in Family::ALL {
        for swap in [false, true] {
            let lan = Lan::new();
            let (mut a, mut b) = Speaker::pair(&lan.a, &lan.b, family);
            (a.passive, b.passive) = (swap, !swap);
            let a = daemon::start(first, &lan.a.namespace, &a);
            let b = daemon::start(second, &lan.b.namespace, &b);
            wait_converged(&*a, &*b, CONVERGENCE);
            assert_never_down(&*a);
            assert_never_down(&*b);
        }
    }
}

#[test]
fn an_unprotected_session_of_bird_and_frr_comes_up() {
    comes_up(Implementation::Bird, Implementation::Frr);
}

#[test]
fn an_unprotected_session_of_bird_and_gobgp_comes_up() {
    comes_up(Implementation::Bird, Implementation::GoBgp);
}

#[test]
fn an_unprotected_session_of_frr_and_frr_comes_up() {
    comes_up(Implementation::Frr, Implementation::Frr);
}
