//! What the environment says: addresses, caches, tokens, offline, by the names that the hubs' own
//! clients read.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// A token. It is shown by nothing.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// A token of a text, which it must be on one line; none of an empty one.
    pub fn new(text: &str) -> Option<Token> {
        let text: String = text.trim().chars().filter(|c| !c.is_control()).collect();
        (!text.is_empty()).then_some(Token(text))
    }

    pub(crate) fn secret(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

/// How requests that failed are made again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retry {
    /// Attempts in a row that bring nothing.
    pub attempts: u32,
    /// The wait after the first; it doubles from there.
    pub first: Duration,
    /// The longest wait, whatever a hub asks for.
    pub longest: Duration,
}

impl Default for Retry {
    fn default() -> Self {
        Retry { attempts: 6, first: Duration::from_secs(1), longest: Duration::from_secs(330) }
    }
}

/// Addresses, caches, tokens and manners of a client.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Of Hugging Face or a mirror, without a slash at the end.
    pub hf_endpoint: String,
    /// Of ModelScope, without a slash at the end.
    pub ms_endpoint: String,
    /// The cache of Hugging Face's clients.
    pub hf_cache: PathBuf,
    /// The cache of ModelScope's clients.
    pub ms_cache: PathBuf,
    /// Where ModelScope's clients up to 1.37 kept repositories: the folder that has `models`.
    pub ms_old_cache: PathBuf,
    /// For Hugging Face.
    pub hf_token: Option<Token>,
    /// For ModelScope.
    pub ms_token: Option<Token>,
    /// Nothing is asked of the network.
    pub offline: bool,
    /// Snapshots are links to blobs.
    pub symlinks: bool,
    /// How long a hub may think about an answer, or about a connection.
    pub answer_timeout: Duration,
    /// How long a download may stand still.
    pub read_timeout: Duration,
    /// How requests are made again.
    pub retry: Retry,
}

impl Settings {
    /// What this process' environment says.
    pub fn from_env() -> Settings {
        Settings::of(&|name| std::env::var(name).ok())
    }

    /// What an environment says; an empty value is as none.
    pub fn of(lookup: &dyn Fn(&str) -> Option<String>) -> Settings {
        let get = |name: &str| lookup(name).filter(|value| !value.is_empty());
        let path = |name: &str| get(name).map(PathBuf::from);
        let is_on =
            |name: &str| get(name).is_some_and(|v| matches!(v.to_lowercase().as_str(), "1" | "on" | "yes" | "true"));
        let seconds = |name: &str| {
            let seconds = get(name)?.parse::<f64>().ok()?;
            Duration::try_from_secs_f64(seconds).ok().filter(|wait| !wait.is_zero())
        };
        let home = path("HOME").or_else(|| path("USERPROFILE")).unwrap_or_default();
        let caches = path("XDG_CACHE_HOME").unwrap_or_else(|| home.join(".cache"));
        let hf_home = path("HF_HOME").unwrap_or_else(|| caches.join("huggingface"));
        let hf_cache =
            path("HF_HUB_CACHE").or_else(|| path("HUGGINGFACE_HUB_CACHE")).unwrap_or_else(|| hf_home.join("hub"));
        let expanded = |path: PathBuf| match path.strip_prefix("~") {
            Ok(rest) => home.join(rest),
            Err(_) => path,
        };
        let read = |path: PathBuf| Token::new(&std::fs::read_to_string(expanded(path)).ok()?);
        let typed = |name: &str| Token::new(&get(name)?);
        let hf_token = match is_on("HF_HUB_DISABLE_IMPLICIT_TOKEN") {
            true => None,
            false => typed("HF_TOKEN")
                .or_else(|| typed("HUGGING_FACE_HUB_TOKEN"))
                .or_else(|| read(path("HF_TOKEN_PATH").unwrap_or_else(|| hf_home.join("token")))),
        };
        let ms_default = home.join(".cache/modelscope");
        let ms_cache = path("MODELSCOPE_CACHE");
        Settings {
            hf_endpoint: endpoint(get("HF_ENDPOINT"), "https://huggingface.co"),
            ms_endpoint: endpoint(
                get("MODELSCOPE_ENDPOINT").or_else(|| Some(format!("https://{}", get("MODELSCOPE_DOMAIN")?))),
                "https://modelscope.cn",
            ),
            hf_cache: expanded(hf_cache),
            ms_old_cache: expanded(ms_cache.clone().unwrap_or_else(|| ms_default.join("hub"))),
            ms_cache: expanded(ms_cache.unwrap_or(ms_default)),
            hf_token,
            ms_token: typed("MODELSCOPE_API_TOKEN"),
            offline: is_on("HF_HUB_OFFLINE") || is_on("TRANSFORMERS_OFFLINE"),
            symlinks: !is_on("HF_HUB_DISABLE_SYMLINKS"),
            answer_timeout: seconds("HF_HUB_ETAG_TIMEOUT").unwrap_or(Duration::from_secs(10)),
            read_timeout: seconds("HF_HUB_DOWNLOAD_TIMEOUT").unwrap_or(Duration::from_secs(10)),
            retry: Retry::default(),
        }
    }
}

/// An address without a slash at the end, and with a scheme.
fn endpoint(given: Option<String>, usual: &str) -> String {
    let given = given.unwrap_or_else(|| usual.into());
    let address = given.trim().trim_end_matches('/');
    if address.contains("://") { address.into() } else { format!("https://{address}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(variables: &[(&str, &str)]) -> Settings {
        Settings::of(&|name| variables.iter().find(|(n, _)| *n == name).map(|(_, value)| value.to_string()))
    }

    #[test]
    fn the_cache_is_the_first_that_is_set_in_the_order_of_the_hub() {
        let all = [
            ("HF_HUB_CACHE", "/a"),
            ("HUGGINGFACE_HUB_CACHE", "/b"),
            ("HF_HOME", "/c"),
            ("XDG_CACHE_HOME", "/d"),
            ("HOME", "/e"),
        ];
        let found = ["/a", "/b", "/c/hub", "/d/huggingface/hub", "/e/.cache/huggingface/hub"];
        for (left_out, cache) in found.into_iter().enumerate() {
            assert_eq!(of(&all[left_out..]).hf_cache, PathBuf::from(cache));
        }
        assert_eq!(of(&[("HF_HUB_CACHE", ""), ("HOME", "/e")]).hf_cache, PathBuf::from(found[4]));
        assert_eq!(of(&[("HF_HOME", "~/x"), ("HOME", "/e")]).hf_cache, PathBuf::from("/e/x/hub"));
    }

    #[test]
    fn modelscope_keeps_old_repositories_below_hub_unless_its_cache_is_named() {
        let usual = of(&[("HOME", "/e")]);
        assert_eq!(usual.ms_cache, PathBuf::from("/e/.cache/modelscope"));
        assert_eq!(usual.ms_old_cache, PathBuf::from("/e/.cache/modelscope/hub"));
        let named = of(&[("MODELSCOPE_CACHE", "/m")]);
        assert_eq!((named.ms_cache, named.ms_old_cache), ("/m".into(), "/m".into()));
    }

    #[test]
    fn an_endpoint_may_end_in_a_slash_and_lack_its_scheme() {
        for given in ["https://mirror.example", "https://mirror.example/", "mirror.example//"] {
            assert_eq!(of(&[("HF_ENDPOINT", given)]).hf_endpoint, "https://mirror.example");
        }
        assert_eq!(of(&[("MODELSCOPE_DOMAIN", "m.example")]).ms_endpoint, "https://m.example");
        assert_eq!(of(&[]).ms_endpoint, "https://modelscope.cn");
    }

    #[test]
    fn offline_tokens_and_timeouts_are_read_and_a_token_is_not_shown() {
        for name in ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"] {
            assert!(of(&[(name, "1")]).offline && of(&[(name, "TRUE")]).offline && !of(&[(name, "0")]).offline);
        }
        let with = of(&[("HF_TOKEN", " hf_secret\n"), ("HF_HUB_DOWNLOAD_TIMEOUT", "2.5")]);
        assert_eq!(with.hf_token.as_ref().map(Token::secret), Some("hf_secret"));
        assert_eq!(with.read_timeout, Duration::from_millis(2500));
        assert!(!format!("{with:?}").contains("hf_secret"));
        assert!(of(&[("HF_TOKEN", "x"), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")]).hf_token.is_none());
    }
}
