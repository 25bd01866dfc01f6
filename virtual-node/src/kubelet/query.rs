//! From the query of a kubelet's API to the query of the API server's `pods` subresources.
//!
//! Values are carried as they are encoded: a command may hold any bytes, and decoding would lose those that are no UTF-8.

use super::route::StreamKind;

/// Parameters of `pods/log` that keep their name. `container` comes from the path.
const LOG_PARAMETERS: [&str; 7] =
    ["follow", "previous", "timestamps", "sinceSeconds", "sinceTime", "tailLines", "limitBytes"];

/// The query of `pods/log` for a query of `/containerLogs`.
///
/// `stream=All` is the default and is left out: servers before 1.32, and those with the gate `PodLogsQuerySplitStreams`
/// off, refuse the parameter. `tail` is an old name of `tailLines`, whose value `all` means no limit.
pub fn log_query(container: &str, query: &str) -> String {
    let mut lower = format!("container={container}");
    let tail = pairs(query).filter(|(name, value)| *name == "tail" && !value.is_empty()).map(|(_, value)| value).last();
    for (name, value) in pairs(query) {
        let keep = match name {
            "stream" => value != "All",
            "tailLines" => tail.is_none(),
            _ => LOG_PARAMETERS.contains(&name),
        };
        if keep {
            push(&mut lower, name, value);
        }
    }
    if let Some(tail) = tail.filter(|tail| *tail != "all") {
        push(&mut lower, "tailLines", tail);
    }
    lower
}

/// Whether a query of `/containerLogs` asks for a log to be followed. What is neither yes nor no counts as yes: the lower
/// API server will refuse it anyway.
pub fn follows(query: &str) -> bool {
    pairs(query).any(|(name, value)| name == "follow" && !matches!(value, "false" | "0"))
}

/// The query of `pods/{exec,attach,portforward}` for a kubelet's.
///
/// A kubelet is asked with `input`, `output`, `error` and `tty`, which count when they are `1`; the API has `stdin`,
/// `stdout`, `stderr` and `tty`, which are booleans. A kubelet takes ports as one list (`port=80,443`), the API as
/// repeated `ports`; both only with WebSocket, as SPDY names the port in each stream's headers.
pub fn stream_query(kind: StreamKind, container: Option<&str>, query: &str) -> String {
    let mut lower = container.map_or_else(String::new, |container| format!("container={container}"));
    for (name, value) in pairs(query) {
        match (kind, name) {
            (StreamKind::PortForward, "port") => {
                // Go's query encoder writes the comma as %2C.
                let value = value.replace("%2C", ",").replace("%2c", ",");
                value.split(',').for_each(|port| push(&mut lower, "ports", port));
            }
            (StreamKind::PortForward, _) => {}
            (_, "input") if value == "1" => push(&mut lower, "stdin", "true"),
            (_, "output") if value == "1" => push(&mut lower, "stdout", "true"),
            (_, "error") if value == "1" => push(&mut lower, "stderr", "true"),
            (_, "tty") if value == "1" => push(&mut lower, "tty", "true"),
            (StreamKind::Exec, "command") => push(&mut lower, "command", value),
            _ => {}
        }
    }
    lower
}

fn pairs(query: &str) -> impl Iterator<Item = (&str, &str)> {
    query.split('&').filter(|pair| !pair.is_empty()).map(|pair| pair.split_once('=').unwrap_or((pair, "")))
}

fn push(query: &mut String, name: &str, value: &str) {
    if !query.is_empty() {
        query.push('&');
    }
    query.push_str(name);
    query.push('=');
    query.push_str(value);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_log_option_goes_down() {
        let all = "follow=true&previous=true&timestamps=true&sinceSeconds=5&sinceTime=2026-01-01T00%3A00%3A00Z\
                   &tailLines=3&limitBytes=9&stream=Stdout";
        assert_eq!(log_query("nginx", all), format!("container=nginx&{all}"));
    }

    #[test]
    fn a_followed_log_is_known() {
        assert!(follows("tailLines=1&follow=true") && follows("follow=1"));
        assert!(!follows("tailLines=1") && !follows("follow=false") && !follows("followed=true"));
    }

    #[test]
    fn the_default_stream_and_strange_parameters_stay_here() {
        assert_eq!(
            log_query("nginx", "stream=All&container=other&insecureSkipTLSVerifyBackend=true"),
            "container=nginx"
        );
        assert_eq!(log_query("nginx", ""), "container=nginx");
    }

    #[test]
    fn the_old_name_of_tail_lines_wins_as_in_a_kubelet() {
        assert_eq!(log_query("c", "tail=7&tailLines=3"), "container=c&tailLines=7");
        assert_eq!(log_query("c", "tail=all&tailLines=3"), "container=c");
    }

    #[test]
    fn exec_parameters_get_their_api_names_and_commands_keep_their_bytes() {
        assert_eq!(
            stream_query(
                StreamKind::Exec,
                Some("nginx"),
                "command=sh&command=-c&command=echo+%FF%26&error=1&input=1&output=1&tty=1"
            ),
            "container=nginx&command=sh&command=-c&command=echo+%FF%26&stderr=true&stdin=true&stdout=true&tty=true"
        );
        assert_eq!(stream_query(StreamKind::Exec, Some("c"), "output=0&input=true&container=x"), "container=c");
    }

    #[test]
    fn attach_has_no_command() {
        assert_eq!(stream_query(StreamKind::Attach, Some("c"), "command=sh&output=1"), "container=c&stdout=true");
    }

    #[test]
    fn ports_are_repeated() {
        assert_eq!(stream_query(StreamKind::PortForward, None, "port=80%2C443"), "ports=80&ports=443");
        assert_eq!(stream_query(StreamKind::PortForward, None, ""), "");
    }
}
