//! Who we are: the user's section of a kubeconfig, in the form that requests need.

use std::{fmt, io, path::PathBuf, process::ExitStatus, sync::Arc};

use base64::{Engine, engine::general_purpose::STANDARD};
use http::{HeaderMap, HeaderName, HeaderValue, header::AUTHORIZATION};
use jiff::Timestamp;
use kube::{Config, config::AuthInfo};
use secrecy::ExposeSecret;

use super::{
    exec::{ExecPlugin, plugin_of},
    oidc::OidcProvider,
    sections::check_credentials,
};
use crate::tls::ReloadingIdentity;

/// Why there is no credential now. No text holds anything secret.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    /// A file of the user's section cannot be read.
    #[error("the {what} file {} cannot be read: {source}; check the path, and that it is mounted", path.display())]
    File {
        /// `tokenFile`, `client-certificate` or `client-key`.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The section, or what a file of it holds, cannot be used.
    #[error("{0}")]
    Unusable(String),
    /// The credential plugin is not installed.
    #[error("the credential plugin `{command}` is not installed: {hint}")]
    PluginMissing {
        /// The program.
        command: String,
        /// The kubeconfig's installHint, or ours.
        hint: String,
    },
    /// The credential plugin could not be run.
    #[error("the credential plugin `{command}` cannot be run: {source}")]
    PluginNotStarted {
        /// The program.
        command: String,
        /// What the system said.
        source: io::Error,
    },
    /// The credential plugin failed. Its output and arguments may hold secrets and are not shown.
    #[error("the credential plugin `{command}` failed ({status}); run it by hand to see why")]
    PluginFailed {
        /// The program.
        command: String,
        /// How it ended.
        status: ExitStatus,
    },
    /// The credential plugin does not end.
    #[error("the credential plugin `{command}` did not end within {seconds} s; run it by hand to see why")]
    PluginHangs {
        /// The program.
        command: String,
        /// How long it was waited for.
        seconds: u64,
    },
    /// What the credential plugin wrote cannot be used.
    #[error("the answer of the credential plugin `{command}` cannot be used: {reason}")]
    PluginAnswer {
        /// The program.
        command: String,
        /// What is wrong.
        reason: String,
    },
    /// The OpenID Connect issuer gave no token.
    #[error("the issuer {issuer} gives no token: {reason}")]
    Issuer {
        /// Its URL.
        issuer: String,
        /// What is wrong.
        reason: String,
    },
}

/// A client certificate chain and its key, PEM, checked to belong together.
#[derive(Clone)]
pub(super) struct Pair {
    certificate: Vec<u8>,
    key: Vec<u8>,
    not_after: Timestamp,
}

impl PartialEq for Pair {
    fn eq(&self, other: &Self) -> bool {
        (&self.certificate, &self.key) == (&other.certificate, &other.key)
    }
}

/// Shows nothing of the key.
impl fmt::Debug for Pair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pair").field("not_after", &self.not_after).finish_non_exhaustive()
    }
}

impl Pair {
    /// Checks them; the error says what is wrong with what `origin` names.
    pub(super) fn new(certificate: &[u8], key: &[u8], origin: &str) -> Result<Self, String> {
        let checked = ReloadingIdentity::from_pem(certificate, key)
            .map_err(|error| format!("the client certificate of {origin} cannot be used: {error}"))?;
        Ok(Self { certificate: certificate.to_vec(), key: key.to_vec(), not_after: checked.not_after() })
    }

    /// Until when it is valid.
    pub(super) fn not_after(&self) -> Timestamp {
        self.not_after
    }

    /// As kube's TLS set-up takes it.
    pub(super) fn auth_info(&self) -> AuthInfo {
        AuthInfo {
            client_certificate_data: Some(STANDARD.encode(&self.certificate)),
            client_key_data: Some(STANDARD.encode(&self.key).into()),
            ..AuthInfo::default()
        }
    }
}

/// A credential of now.
#[derive(Clone, Default, PartialEq)]
pub(super) struct Obtained {
    pub(super) token: Option<String>,
    pub(super) pair: Option<Pair>,
    /// When it must have been replaced; `None` when that shows in the files, or never.
    pub(super) expires: Option<Timestamp>,
}

impl Obtained {
    /// The token as a header. The value is marked as sensitive, so that no log shows it.
    pub(super) fn authorization(&self) -> Result<Option<HeaderValue>, CredentialError> {
        let Some(token) = self.token.as_deref().map(str::trim) else { return Ok(None) };
        let odd = || CredentialError::Unusable("the token is empty, or holds characters that no token has".to_owned());
        if token.is_empty() {
            return Err(odd());
        }
        let mut value = HeaderValue::try_from(format!("Bearer {token}")).map_err(|_| odd())?;
        value.set_sensitive(true);
        Ok(Some(value))
    }
}

/// Where the credential comes from.
#[derive(Clone)]
pub(super) enum Means {
    /// It is known, for as long as the files do not change.
    Known(Obtained),
    /// A program is asked.
    Exec(Arc<ExecPlugin>),
    /// An OpenID Connect issuer is asked.
    Oidc(Arc<OidcProvider>),
}

impl Means {
    /// Whether asking again may give another credential although no file has changed.
    pub(super) fn is_asked(&self) -> bool {
        !matches!(self, Self::Known(_))
    }

    /// A credential for now. `refused` says that the server does not take the one that there is.
    pub(super) async fn obtain(&self, refused: bool) -> Result<Obtained, CredentialError> {
        match self {
            Self::Known(known) => Ok(known.clone()),
            Self::Exec(plugin) => plugin.run().await,
            Self::Oidc(provider) => provider.token(refused).await,
        }
    }

    /// Goes on with what an equal one has learnt: an issuer's newest refresh token.
    pub(super) fn or_equal(self, before: &Self) -> Self {
        match (&self, before) {
            (Self::Oidc(new), Self::Oidc(old)) if new.is_as_given(old) => before.clone(),
            _ => self,
        }
    }
}

/// A configuration, taken apart.
pub(super) struct Parts {
    /// Address, trust and proxy. No credentials.
    pub(super) config: Config,
    /// As whom the server shall act for us.
    pub(super) impersonation: HeaderMap,
    /// How we prove who we are.
    pub(super) means: Means,
    /// Files of the user's section.
    pub(super) files: Vec<PathBuf>,
}

impl Parts {
    /// Takes a configuration apart, and reads the files of its user.
    pub(super) fn of(mut config: Config) -> Result<Self, CredentialError> {
        let user = std::mem::take(&mut config.auth_info);
        check_credentials(&user).map_err(CredentialError::Unusable)?;
        let impersonation = impersonation(&user)?;
        let mut files = Vec::new();
        let means = if let Some(plugin) = plugin_of(&user) {
            Means::Exec(Arc::new(plugin.map_err(CredentialError::Unusable)?))
        } else if let Some(provider) = &user.auth_provider {
            Means::Oidc(Arc::new(OidcProvider::new(provider).map_err(CredentialError::Unusable)?))
        } else {
            Means::Known(known(&user, &mut files)?)
        };
        Ok(Self { config, impersonation, means, files })
    }
}

fn known(user: &AuthInfo, files: &mut Vec<PathBuf>) -> Result<Obtained, CredentialError> {
    let mut read = |what, path: &String| {
        files.push(path.into());
        std::fs::read(path).map_err(|source| CredentialError::File { what, path: path.into(), source })
    };
    let inline = user.token.as_ref().map(|token| token.expose_secret().to_owned());
    // kubectl's rule where both are given: the file counts, and the token while the file cannot be read.
    let token = match (&user.token_file, inline) {
        (None, inline) => inline,
        (Some(path), inline) => match (read("tokenFile", path), inline) {
            (Ok(bytes), _) => Some(utf8(bytes, path)?),
            (Err(_), Some(inline)) => Some(inline),
            (Err(error), None) => return Err(error),
        },
    };
    let decoded = |text: &str, name: &str| {
        STANDARD.decode(text.trim()).map_err(|_| CredentialError::Unusable(format!("its {name} is not base64")))
    };
    let certificate = match (&user.client_certificate_data, &user.client_certificate) {
        (Some(data), _) => Some(decoded(data, "client-certificate-data")?),
        (None, Some(path)) => Some(read("client-certificate", path)?),
        (None, None) => None,
    };
    let key = match (&user.client_key_data, &user.client_key) {
        (Some(data), _) => Some(decoded(data.expose_secret(), "client-key-data")?),
        (None, Some(path)) => Some(read("client-key", path)?),
        (None, None) => None,
    };
    let pair = match (certificate, key) {
        (Some(certificate), Some(key)) => {
            Some(Pair::new(&certificate, &key, "the user's section").map_err(CredentialError::Unusable)?)
        }
        _ => None,
    };
    Ok(Obtained { token, pair, expires: None })
}

fn utf8(bytes: Vec<u8>, path: &str) -> Result<String, CredentialError> {
    let text = String::from_utf8(bytes).unwrap_or_default();
    if text.trim().is_empty() {
        return Err(CredentialError::Unusable(format!("the tokenFile {path} holds no token")));
    }
    Ok(text)
}

/// The headers of `as`, `as-uid`, `as-groups` and `as-user-extra`.
fn impersonation(user: &AuthInfo) -> Result<HeaderMap, CredentialError> {
    let odd = || CredentialError::Unusable("as, as-uid, as-groups or as-user-extra holds odd characters".to_owned());
    let mut headers = HeaderMap::new();
    let mut add = |name: &str, text: &str| {
        let name: HeaderName = name.parse().map_err(|_| odd())?;
        headers.append(name, HeaderValue::from_str(text).map_err(|_| odd())?);
        Ok::<_, CredentialError>(())
    };
    if let Some(name) = &user.impersonate {
        add("impersonate-user", name)?;
    }
    if let Some(uid) = &user.impersonate_uid {
        add("impersonate-uid", uid)?;
    }
    for group in user.impersonate_groups.iter().flatten() {
        add("impersonate-group", group)?;
    }
    for (key, values) in user.impersonate_user_extra.iter().flatten() {
        for value in values {
            add(&format!("impersonate-extra-{}", escaped(key)), value)?;
        }
    }
    Ok(headers)
}

/// A key of `as-user-extra` as part of a header's name: what HTTP does not allow there is percent-encoded, as client-go
/// does it and API servers undo it.
fn escaped(key: &str) -> String {
    use std::fmt::Write;
    let mut text = String::new();
    for byte in key.bytes() {
        if byte.is_ascii_alphanumeric() || b"!#$&'*+-.^_`|~".contains(&byte) {
            text.push(char::from(byte));
        } else {
            // Writing to a string does not fail.
            let _ = write!(text, "%{byte:02x}");
        }
    }
    text
}

/// Puts who we are on a request.
pub(super) fn headers_of(parts: &Parts, obtained: &Obtained) -> Result<HeaderMap, CredentialError> {
    let mut headers = parts.impersonation.clone();
    if let Some(value) = obtained.authorization()? {
        headers.insert(AUTHORIZATION, value);
    }
    Ok(headers)
}
