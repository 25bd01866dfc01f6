//! JSON in annotations: strict, of bounded size, with errors that name the field.

use serde::{Serialize, de::DeserializeOwned};

/// Most bytes of one annotation of ours. Kubernetes allows 256 KiB for all annotations of an object together
/// (`TotalAnnotationSizeLimitB`); this leaves the greater part to others.
pub(super) const BYTES_MAX: usize = 64 << 10;

/// Why an annotation cannot be read or written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// The value is too long.
    #[error(
        "annotation {annotation} has {bytes} bytes, at most {BYTES_MAX} are allowed: simplify the pod's affinity terms"
    )]
    TooLarge {
        /// Name of the annotation.
        annotation: &'static str,
        /// Its length.
        bytes: usize,
    },
    /// A field is wrong.
    #[error("annotation {annotation}: field {path}: {problem}")]
    Field {
        /// Name of the annotation.
        annotation: &'static str,
        /// Path of the field, such as `affinity.nodeAffinity`; `.` stands for the value as a whole.
        path: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A field that this version does not know.
    #[error(
        "annotation {annotation}: field {path} is not known to this version of tensile: remove it, or upgrade the virtual-node to the version of the webhook"
    )]
    Unknown {
        /// Name of the annotation.
        annotation: &'static str,
        /// Path of the field.
        path: String,
    },
}

/// Reads a value, which is an object. (serde would also take an array of the fields in their order.)
pub(super) fn decode<T: DeserializeOwned>(annotation: &'static str, text: &str) -> Result<T, CodecError> {
    if text.len() > BYTES_MAX {
        return Err(CodecError::TooLarge { annotation, bytes: text.len() });
    }
    if !text.trim_start().starts_with('{') {
        let problem = "expected a JSON object".to_owned();
        return Err(CodecError::Field { annotation, path: ".".to_owned(), problem });
    }
    let mut json = serde_json::Deserializer::from_str(text);
    let mut track = serde_path_to_error::Track::new();
    let mut unknown = None;
    let tracked = serde_path_to_error::Deserializer::new(&mut json, &mut track);
    let value = serde_ignored::deserialize(tracked, |path| {
        unknown.get_or_insert_with(|| plain(&path.to_string()));
    });
    let field = |path: String, error: serde_json::Error| CodecError::Field {
        annotation,
        path: if path.is_empty() { ".".to_owned() } else { path },
        problem: error.to_string(),
    };
    let value = value.map_err(|error| field(track.path().to_string(), error))?;
    json.end().map_err(|error| field(String::new(), error))?;
    match unknown {
        Some(path) => Err(CodecError::Unknown { annotation, path }),
        None => Ok(value),
    }
}

/// A path as serde_ignored writes it, with `?` for each Option that it passed and indexes as names, in the form of the other errors.
fn plain(path: &str) -> String {
    path.split('.').filter(|part| *part != "?").fold(String::new(), |path, part| {
        let index = part.bytes().all(|byte| byte.is_ascii_digit());
        if index {
            format!("{path}[{part}]")
        } else if path.is_empty() {
            part.to_owned()
        } else {
            format!("{path}.{part}")
        }
    })
}

/// Writes a value.
pub(super) fn encode<T: Serialize>(annotation: &'static str, value: &T) -> Result<String, CodecError> {
    let text = serde_json::to_string(value).map_err(|error| CodecError::Field {
        annotation,
        path: ".".to_owned(),
        problem: error.to_string(),
    })?;
    if text.len() > BYTES_MAX {
        return Err(CodecError::TooLarge { annotation, bytes: text.len() });
    }
    Ok(text)
}
