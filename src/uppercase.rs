//! Placeholder.

/// Upper-cases ASCII in place.
pub fn make_uppercase(bytes: &mut [u8]) {
    bytes.make_ascii_uppercase();
}
