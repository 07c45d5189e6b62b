//! Serialization of paths between processes: text where they are UTF-8, bytes otherwise.
//!
//! A Linux path may contain any byte but zero. JSON has only text, and serde rejects paths that are
//! not UTF-8, which would make the whole message or state fail.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Written {
    Text(String),
    Bytes(Vec<u8>),
}

/// Writes a path of any bytes.
///
/// # Errors
/// The serializer's error.
pub(crate) fn serialize<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    let written = match path.to_str() {
        Some(text) => Written::Text(text.to_owned()),
        None => Written::Bytes(OsStr::as_bytes(path.as_os_str()).to_vec()),
    };
    written.serialize(serializer)
}

/// Reads the output of [`serialize`].
///
/// # Errors
/// An error if it is neither text nor a list of bytes.
pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<PathBuf, D::Error> {
    Ok(match Written::deserialize(from)? {
        Written::Text(text) => PathBuf::from(text),
        Written::Bytes(bytes) => PathBuf::from(OsString::from_vec(bytes)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_path_survives_json() {
        #[derive(Serialize, Deserialize)]
        struct Named(#[serde(with = "super")] PathBuf);

        for bytes in [&b"/a b/it's"[..], b"/caf\xe9/\xff", "/café".as_bytes(), b""] {
            let path = PathBuf::from(OsStr::from_bytes(bytes));
            let json = serde_json::to_string(&Named(path.clone())).unwrap();
            let read: Named = serde_json::from_str(&json).unwrap();
            assert_eq!(read.0, path, "{json}");
        }
        let plain = serde_json::to_string(&Named("/usr/bin".into())).unwrap();
        assert_eq!(plain, "\"/usr/bin\"");
    }
}
