//! The downward API below shows the upper pod: paths that would read the lower pod's own metadata read annotations of
//! ours instead, for a lower kubelet knows nothing of the upper pod.

use std::{collections::BTreeMap, fmt::Write};

use k8s_openapi::api::core::v1::{DownwardAPIVolumeFile, EnvVar, ObjectFieldSelector, PodSpec};
use tensile_proto::vocabulary::annotation;

/// The field paths that differ between the two pods, and the annotation that holds the upper value.
/// `metadata.name`, single labels and single annotations are equal in both and pass. So do `status.hostIP` and
/// `status.podIP`: a process that asks for them wants to reach the machine it runs on, or be reached where it is.
const PATHS: [(&str, &str); 6] = [
    ("metadata.namespace", annotation::UPPER_NAMESPACE),
    ("metadata.uid", annotation::UPPER_UID),
    ("metadata.labels", annotation::UPPER_LABELS),
    ("metadata.annotations", annotation::UPPER_ANNOTATIONS),
    ("spec.nodeName", annotation::UPPER_NODE),
    ("spec.serviceAccountName", annotation::UPPER_SERVICE_ACCOUNT),
];

/// Translates the fieldRef of an environment variable in place.
pub(super) fn map_variable(variable: &mut EnvVar) {
    if let Some(field) = variable.value_from.as_mut().and_then(|source| source.field_ref.as_mut()) {
        map_field(field);
    }
}

/// Translates the fieldRef of a file of a downward API volume in place.
pub(super) fn map_file(file: &mut DownwardAPIVolumeFile) {
    if let Some(field) = &mut file.field_ref {
        map_field(field);
    }
}

fn map_field(field: &mut ObjectFieldSelector) {
    if let Some((_, annotation)) = PATHS.iter().find(|(path, _)| *path == field.field_path) {
        field.field_path = format!("metadata.annotations['{annotation}']");
    }
}

/// Which whole maps the pod's volumes ask for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct WholeMaps {
    /// `metadata.labels`.
    pub labels: bool,
    /// `metadata.annotations`.
    pub annotations: bool,
}

/// Reads which whole maps an *upper* spec asks for. Only volumes may.
pub(super) fn whole_maps(spec: &PodSpec) -> WholeMaps {
    let mut asked = WholeMaps::default();
    for volume in spec.volumes.iter().flatten() {
        let own = volume.downward_api.iter().flat_map(|source| source.items.iter().flatten());
        let projected = volume
            .projected
            .iter()
            .flat_map(|source| source.sources.iter().flatten())
            .filter_map(|source| source.downward_api.as_ref())
            .flat_map(|source| source.items.iter().flatten());
        for field in own.chain(projected).filter_map(|file| file.field_ref.as_ref()) {
            asked.labels |= field.field_path == "metadata.labels";
            asked.annotations |= field.field_path == "metadata.annotations";
        }
    }
    asked
}

/// Writes a map as a kubelet does in a downward API file: sorted `key="value"` lines, values quoted as Go quotes them
/// (`FormatMap` in `K pkg/fieldpath/fieldpath.go`).
pub(super) fn format_map(map: &BTreeMap<String, String>) -> String {
    let mut text = String::new();
    for (key, value) in map {
        if !text.is_empty() {
            text.push('\n');
        }
        text.push_str(key);
        text.push_str("=\"");
        for character in value.chars() {
            quote_go(&mut text, character);
        }
        text.push('"');
    }
    text
}

fn quote_go(text: &mut String, character: char) {
    let escape = match character {
        '"' => "\\\"",
        '\\' => "\\\\",
        '\u{7}' => "\\a",
        '\u{8}' => "\\b",
        '\u{c}' => "\\f",
        '\n' => "\\n",
        '\r' => "\\r",
        '\t' => "\\t",
        '\u{b}' => "\\v",
        ' '..='~' => {
            text.push(character);
            return;
        }
        _ => "",
    };
    if !escape.is_empty() {
        text.push_str(escape);
        return;
    }
    let code = u32::from(character);
    // Writing to a String cannot fail.
    let _ = if code < 0x20 || code == 0x7f {
        write!(text, "\\x{code:02x}")
    } else if is_printable(character) {
        text.push(character);
        Ok(())
    } else if code < 0x1_0000 {
        write!(text, "\\u{code:04x}")
    } else {
        write!(text, "\\U{code:08x}")
    };
}

/// Whether Rust's own tables call a character printable, also behind another one: `str::escape_debug` escapes combining
/// marks only at the start of a text, and Go escapes them nowhere.
fn is_printable(character: char) -> bool {
    format!("a{character}").escape_debug().count() == 2
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn maps_are_written_as_a_kubelet_writes_them() {
        let map = [("b", "2"), ("a", "x\"y\\\n\u{1}é\u{301}\u{200b}\u{1f600}\u{e000}")];
        let map = map.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
        assert_eq!(format_map(&map), "a=\"x\\\"y\\\\\\n\\x01é\u{301}\\u200b\u{1f600}\\ue000\"\nb=\"2\"");
        assert_eq!(format_map(&BTreeMap::new()), "");
    }

    #[test]
    fn only_differing_paths_are_mapped() {
        for (path, expected) in [
            ("metadata.namespace", "metadata.annotations['tensile.dev/upper-namespace']"),
            ("metadata.uid", "metadata.annotations['tensile.dev/upper-uid']"),
            ("spec.nodeName", "metadata.annotations['tensile.dev/upper-node']"),
            ("spec.serviceAccountName", "metadata.annotations['tensile.dev/upper-service-account']"),
            ("metadata.name", "metadata.name"),
            ("metadata.labels['app']", "metadata.labels['app']"),
            ("status.podIP", "status.podIP"),
            ("status.hostIP", "status.hostIP"),
        ] {
            let mut field = ObjectFieldSelector { api_version: None, field_path: path.into() };
            map_field(&mut field);
            assert_eq!(field.field_path, expected);
        }
    }
}
