//! The operator's table of reasons is whole.

use ao_engine::reason::DropReason;

#[test]
fn every_reason_stands_in_the_operations_manual() {
    let manual = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/OPERATIONS.md");
    let manual = std::fs::read_to_string(manual).unwrap();
    for reason in DropReason::ALL {
        let row = format!("| `{}` |", reason.as_str());
        assert!(manual.contains(&row), "no row for {row}");
    }
}
