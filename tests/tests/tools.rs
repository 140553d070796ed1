//! The tools the tests rely on are tested themselves.

use ao_tests::capture::tool;
use ao_tests::process::output;

#[test]
fn the_capture_checker_agrees_with_rfc_9235_and_finds_faults() {
    output(tool("test_tools.py")).unwrap_or_else(|error| panic!("{error}"));
}
