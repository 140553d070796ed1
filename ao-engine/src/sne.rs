//! Sequence number extension (SNE, RFC 5925 §6.2) by a 64-bit high-water mark.
//!
//! The pseudocode of RFC 5925 §6.2 gives wrong values around a wrap; RFC 9187 §6 has check lines,
//! and the mark gets all of them right.

/// The highest 64-bit sequence number of one direction of a connection: SNE in the upper half,
/// the number on the wire in the lower.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HighWater(u64);

impl HighWater {
    /// The mark of a new connection: SNE is 0 whatever the ISN (RFC 5925 §6.2).
    #[must_use]
    pub fn from_isn(isn: u32) -> Self {
        Self(u64::from(isn))
    }

    /// A mark as it was recorded.
    #[must_use]
    pub fn from_value(value: u64) -> Self {
        Self(value)
    }

    /// The 64-bit sequence number.
    #[must_use]
    pub fn value(self) -> u64 {
        self.0
    }

    /// The number on the wire.
    #[must_use]
    pub fn wire(self) -> u32 {
        let [.., b3, b2, b1, b0] = self.0.to_be_bytes();
        u32::from_be_bytes([b3, b2, b1, b0])
    }

    /// SNE of the mark itself.
    #[must_use]
    pub fn sne(self) -> u32 {
        upper_half(self.0)
    }

    /// The 64-bit number nearest to the mark that shows `seq` on the wire. A number half the
    /// space away counts as old.
    #[must_use]
    pub fn extend(self, seq: u32) -> u64 {
        let ahead = seq.wrapping_sub(self.wire());
        self.0.wrapping_add_signed(i64::from(ahead.cast_signed()))
    }

    /// SNE to use for a segment with `seq`.
    #[must_use]
    pub fn sne_of(self, seq: u32) -> u32 {
        upper_half(self.extend(seq))
    }

    /// Moves the mark up to `extended`, never down. Only for segments that were sent, or whose
    /// MAC verified: anything else would let a forger move the window.
    pub fn advance(&mut self, extended: u64) {
        if extended.wrapping_sub(self.0).cast_signed() > 0 {
            self.0 = extended;
        }
    }
}

fn upper_half(value: u64) -> u32 {
    let [b7, b6, b5, b4, ..] = value.to_be_bytes();
    u32::from_be_bytes([b7, b6, b5, b4])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The check lines of RFC 9187 §6: SNE and sequence number, in order of arrival.
    const RFC_9187: [(u32, u32); 29] = [
        (0, 0x0000_0000),
        (0, 0x3000_0000),
        (0, 0x9000_0000),
        (0, 0x7000_0000),
        (0, 0xa000_0000),
        (1, 0x0000_0001),
        (0, 0xe000_0000),
        (1, 0x0000_0000),
        (1, 0x7fff_ffff),
        (1, 0x0000_0000),
        (1, 0x5000_0000),
        (1, 0x8000_0000),
        (1, 0x0000_0001),
        (1, 0x4000_0000),
        (1, 0x9000_0000),
        (1, 0xb000_0000),
        (2, 0x0fff_ffff),
        (2, 0x2000_0000),
        (2, 0x9000_0000),
        (2, 0x7000_0000),
        (2, 0xa000_0000),
        (3, 0x0000_4000),
        (2, 0xd000_0000),
        (3, 0x2000_0000),
        (3, 0x9000_0000),
        (3, 0x7000_0000),
        (3, 0xa000_0000),
        (4, 0x0000_4000),
        (3, 0xd000_0000),
    ];

    #[test]
    fn gets_every_check_line_of_rfc_9187_right() {
        let mut mark = HighWater::from_isn(0);
        for (line, (sne, seq)) in RFC_9187.into_iter().enumerate() {
            assert_eq!(mark.sne_of(seq), sne, "line {line}, seq {seq:#010x}");
            mark.advance(mark.extend(seq));
        }
    }

    #[test]
    fn keepalive_probe_at_a_wrap_uses_the_old_sne() {
        let mark = HighWater::from_value(0x1_0000_0000);
        assert_eq!(mark.sne_of(0xffff_ffff), 0);
    }

    #[test]
    fn the_first_wrap_comes_as_early_as_the_isn_says() {
        let mark = HighWater::from_isn(0xffff_fff0);
        assert_eq!(mark.sne_of(0x10), 1);
    }

    #[test]
    fn a_segment_before_isn_zero_does_not_move_the_mark() {
        let mut mark = HighWater::from_isn(0);
        mark.advance(mark.extend(0xffff_ffff));
        assert_eq!(mark.value(), 0);
    }

    proptest! {
        #[test]
        fn recovers_any_number_less_than_half_the_space_away(
            mark in (1u64 << 32)..(1 << 48),
            distance in -0x7fff_ffffi64..0x7fff_ffff,
        ) {
            let truth = mark.wrapping_add_signed(distance);
            let on_wire = (truth & 0xffff_ffff) as u32;
            prop_assert_eq!(HighWater::from_value(mark).extend(on_wire), truth);
        }

        #[test]
        fn never_moves_back(mark: u64, seq: u32) {
            let mut moved = HighWater::from_value(mark);
            moved.advance(moved.extend(seq));
            prop_assert!(moved.value().wrapping_sub(mark) < 1 << 31);
        }
    }
}
