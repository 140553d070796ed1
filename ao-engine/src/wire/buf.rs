//! A packet that can grow and shrink within its buffer.

/// Octets to leave free before a packet so that one TCP-AO option can be inserted.
pub const HEADROOM: usize = 20;

/// An IP packet in a buffer with free space before it.
///
/// Headers are short and payloads long, so everything moves at the front: an insertion moves the
/// headers towards the start of the buffer, a removal moves them back, the payload stays.
#[derive(Debug)]
pub struct PacketBuf<'a> {
    storage: &'a mut [u8],
    start: usize,
    end: usize,
}

/// The gap does not fit into the space before the packet, or lies outside the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no room before the packet")]
pub struct NoHeadroom;

impl<'a> PacketBuf<'a> {
    /// The packet at `start..end` of `storage`; `None` when that is no range within it.
    #[must_use]
    pub fn new(storage: &'a mut [u8], start: usize, end: usize) -> Option<Self> {
        (start <= end && end <= storage.len()).then_some(Self {
            storage,
            start,
            end,
        })
    }

    /// The packet.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.storage.get(self.start..self.end).unwrap_or_default()
    }

    /// The packet, to be changed in place.
    #[must_use]
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        self.storage
            .get_mut(self.start..self.end)
            .unwrap_or_default()
    }

    /// Octets of the packet.
    #[must_use]
    pub fn len(&self) -> usize {
        self.end - self.start
    }

    /// Whether there is no packet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Free octets before the packet.
    #[must_use]
    pub fn headroom(&self) -> usize {
        self.start
    }

    /// Inserts `n` zero octets at offset `at`, by moving what is before them forward.
    ///
    /// # Errors
    /// When the headroom is less than `n`, or `at` is beyond the end. Nothing has changed then.
    pub fn open_gap(&mut self, at: usize, n: usize) -> Result<(), NoHeadroom> {
        let start = self.start.checked_sub(n).ok_or(NoHeadroom)?;
        if at > self.len() {
            return Err(NoHeadroom);
        }
        self.storage.copy_within(self.start..self.start + at, start);
        self.start = start;
        if let Some(gap) = self.bytes_mut().get_mut(at..at + n) {
            gap.fill(0);
        }
        Ok(())
    }

    /// Removes the `n` octets at offset `at`, by moving what is before them back. Of a range that
    /// reaches beyond the end, the part within the packet is removed.
    pub fn close_gap(&mut self, at: usize, n: usize) {
        let at = at.min(self.len());
        let n = n.min(self.len() - at);
        self.storage
            .copy_within(self.start..self.start + at, self.start + n);
        self.start += n;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_move_the_front_only() {
        let mut storage = *b"..abcdef!";
        let mut buf = PacketBuf::new(&mut storage, 2, 8).unwrap();
        assert_eq!((buf.len(), buf.headroom()), (6, 2));
        assert_eq!(buf.open_gap(3, 3), Err(NoHeadroom));
        assert_eq!(buf.open_gap(7, 1), Err(NoHeadroom));
        assert_eq!(buf.bytes(), b"abcdef");
        buf.open_gap(3, 2).unwrap();
        assert_eq!(buf.bytes(), b"abc\0\0def");
        buf.close_gap(2, 3);
        assert_eq!(buf.bytes(), b"abdef");
        buf.close_gap(4, 9);
        assert_eq!(buf.bytes(), b"abde");
        buf.close_gap(9, 1);
        assert_eq!(buf.bytes(), b"abde");
        assert_eq!(storage[8], b'!');
    }

    #[test]
    fn only_ranges_within_the_storage() {
        let mut storage = [0; 4];
        assert!(PacketBuf::new(&mut storage, 3, 2).is_none());
        assert!(PacketBuf::new(&mut storage, 0, 5).is_none());
        assert!(PacketBuf::new(&mut storage, 4, 4).unwrap().is_empty());
    }
}
