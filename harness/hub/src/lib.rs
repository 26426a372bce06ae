//! Models and data by name, from Hugging Face and ModelScope.
//!
//! ```no_run
//! use karat_hub::{Client, HubId, RepoKind, Settings, Silent, Want};
//!
//! # fn main() -> karat_system::Result<()> {
//! let client = Client::new(Settings::from_env());
//! let id = HubId::parse("hf:Qwen/Qwen3-0.6B")?;
//! let model = client.fetch(&id, RepoKind::Model, &Want::Model, None, &Silent)?;
//! println!("{} at {}", model.local().display(), model.state);
//! # Ok(())
//! # }
//! ```
//!
//! The client blocks and has no runtime below it: both protocols are a listing, the headers of a
//! file, and its bytes from some byte on. What it writes lies where the hubs' own clients look, so
//! that nothing is downloaded twice, in either direction.
//!
//! What is promised:
//!
//! - A file gets its name once its hash is that of the hub's listing, and never before; a link to it
//!   is made after that. A process that is killed leaves nothing half-named.
//! - What was cut off is continued, by this process or the next one; two processes wait for each
//!   other.
//! - A token goes to the hub that it is for, and to no host that a redirect leads to.
//! - What could run code when it is read (pickles, scripts) is never fetched, nor is a listing
//!   believed whose paths lead out of its folder.
//! - Offline, the cache is used alone, and what it lacks is named.

mod api;
mod choose;
mod client;
mod fetch_hugging_face;
mod fetch_model_scope;
mod hash;
mod http;
mod hugging_face;
mod id;
mod layout;
mod lock;
mod model_scope;
mod progress;
mod record;
mod refusal;
mod remote;
mod retry;
mod settings;
mod space;
mod survey;
mod transfer;

pub use api::{Api, Login, Reply};
pub use client::{Client, Snapshot, SnapshotFile, Want};
pub use id::{HubId, RepoKind, Site};
pub use progress::{Event, Progress, Silent};
pub use settings::{Retry, Settings, Token};
pub use space::in_words;
pub use survey::{Cached, survey};
