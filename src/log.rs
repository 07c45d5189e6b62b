//! Placeholder.
/// x
pub fn escape(bytes: &[u8], max: usize) -> impl std::fmt::Display {
    format!("{:?}", &bytes[..bytes.len().min(max)])
}
