//! Fixed-size fields at an offset, without a panic for those that are not there.

/// The `N` octets at `at`.
pub(super) fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

pub(super) fn u8_at(bytes: &[u8], at: usize) -> Option<u8> {
    bytes.get(at).copied()
}

pub(super) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    array(bytes, at).map(u16::from_be_bytes)
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    array(bytes, at).map(u32::from_be_bytes)
}

/// Overwrites the octets at `at`, if all of them lie within `bytes`.
pub(super) fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    let field = bytes
        .get_mut(at..)
        .and_then(|from| from.get_mut(..value.len()));
    if let Some(field) = field {
        field.copy_from_slice(value);
    }
}
