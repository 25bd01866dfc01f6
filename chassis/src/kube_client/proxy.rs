//! Which proxy leads to an API server, as kubectl decides it.

use std::env;

use http::Uri;
use hyper_util::client::proxy::matcher::Matcher;

/// The proxy to a server: the kubeconfig's `proxy-url` if it has one, else that of the environment (`HTTPS_PROXY`,
/// `NO_PROXY`). The error names the proxy without its password.
pub(super) fn of(server: &Uri, given: Option<&str>) -> Result<Option<Uri>, String> {
    if let Some(given) = given.filter(|given| !given.is_empty()) {
        return parse(given).map(Some).ok_or_else(|| {
            "its proxy-url is not a URL: give it as http://HOST:PORT, https://HOST:PORT or socks5://HOST:PORT"
                .to_owned()
        });
    }
    of_environment(server, |name| env::var(name).or_else(|_| env::var(name.to_lowercase())).ok())
}

fn of_environment(server: &Uri, variable: impl Fn(&str) -> Option<String>) -> Result<Option<Uri>, String> {
    let Some(proxy) = variable("HTTPS_PROXY").filter(|proxy| !proxy.is_empty()) else { return Ok(None) };
    // As for every Kubernetes program: a server on this machine is reached directly.
    let host = server.host().unwrap_or_default().trim_matches(['[', ']']);
    let local = host == "localhost" || host.parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback());
    let matcher = Matcher::builder().all(proxy.clone()).no(variable("NO_PROXY").unwrap_or_default()).build();
    if local || matcher.intercept(server).is_none() {
        return Ok(None);
    }
    let refused = || "the proxy in HTTPS_PROXY is not a URL: give it as http://HOST:PORT".to_owned();
    parse(&proxy).map(Some).ok_or_else(refused)
}

fn parse(text: &str) -> Option<Uri> {
    let with_scheme = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
    with_scheme.parse::<Uri>().ok().filter(|uri| uri.host().is_some())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn chosen(server: &'static str, https_proxy: &str, no_proxy: &str) -> Option<String> {
        let variable = |name: &str| Some(if name == "HTTPS_PROXY" { https_proxy } else { no_proxy }.to_owned());
        of_environment(&Uri::from_static(server), variable).unwrap().map(|uri| uri.to_string())
    }

    #[test]
    fn no_proxy_is_about_the_server_and_not_about_the_proxy() {
        let proxy = "http://proxy.test:3128";
        assert_eq!(chosen("https://a.test:6443", proxy, "").unwrap(), "http://proxy.test:3128/");
        assert_eq!(chosen("https://a.test:6443", proxy, "b.test,a.test"), None);
        assert_eq!(chosen("https://10.1.2.3:6443", proxy, "10.0.0.0/8"), None);
        assert!(chosen("https://a.test:6443", proxy, "proxy.test").is_some());
        assert_eq!(chosen("https://127.0.0.1:6443", proxy, ""), None);
        assert_eq!(chosen("https://a.test:6443", "", ""), None);
    }

    #[test]
    fn a_proxy_of_the_kubeconfig_always_counts_and_is_checked() {
        let server = Uri::from_static("https://127.0.0.1:6443");
        assert_eq!(of(&server, Some("socks5://p:1080")).unwrap().unwrap().to_string(), "socks5://p:1080/");
        let error = of(&server, Some("http://user:hunter2@ p")).unwrap_err();
        assert!(error.contains("proxy-url") && !error.contains("hunter2"), "{error}");
    }
}
