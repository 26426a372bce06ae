//! The session that stays open from one question to the next.

use crate::backend::{BackendErrorKind, Capability, OpenConfig, Session};
use crate::error::Result;
use crate::run::{LoadedBackend, backend_error};

/// At most one open session of one backend. A backend that can exchange the adapter of a session
/// ([`Capability::ExchangeAdapter`]) keeps the base model in memory while base and adapters are
/// asked in turn; any other opens a session for each, after the one before is gone.
#[derive(Default)]
pub struct SessionCache {
    held: Option<Held>,
}

/// An open session: of which backend, how, and itself.
struct Held {
    backend: String,
    open: OpenConfig,
    session: Box<dyn Session>,
}

impl SessionCache {
    /// A session of `open`: the one that is there with its adapter exchanged if it is of the same
    /// base and settings, else a new one.
    ///
    /// # Errors
    /// The backend's: the model cannot be opened, or the adapter not be applied.
    pub fn session(&mut self, backend: &LoadedBackend, open: &OpenConfig) -> Result<&mut Box<dyn Session>> {
        let descriptor = backend.backend.describe();
        let exchanges = descriptor.capabilities.contains(&Capability::ExchangeAdapter);
        let kept = match self.held.take() {
            Some(held) if exchanges && held.backend == descriptor.name => exchange(held.open, held.session, open)?,
            // Dropped before the next one is opened: two models may not fit.
            _ => None,
        };
        let session = match kept {
            Some(session) => session,
            None => backend.open(open)?,
        };
        Ok(&mut self.held.insert(Held { backend: descriptor.name, open: open.clone(), session }).session)
    }

    /// Frees the memory of the session that is there.
    pub fn close(&mut self) {
        self.held = None;
    }
}

/// `session`, opened as `was`, as a session of `open`; none if it cannot be one.
fn exchange(was: OpenConfig, mut session: Box<dyn Session>, open: &OpenConfig) -> Result<Option<Box<dyn Session>>> {
    let (adapter, wanted) = (was.adapter.as_deref(), open.adapter.as_deref());
    // What is merged on opening is another model.
    if (OpenConfig { adapter: open.adapter.clone(), ..was.clone() }) != *open || open.merge_into.is_some() {
        return Ok(None);
    }
    if adapter == wanted {
        return Ok(Some(session));
    }
    match session.set_adapter(wanted) {
        Ok(()) => Ok(Some(session)),
        // A backend that can in one mode cannot in another.
        Err(error) if error.kind == BackendErrorKind::Unsupported => Ok(None),
        Err(error) => {
            let place = wanted.unwrap_or(&open.model).display().to_string();
            Err(backend_error("the adapter of the open model could not be exchanged", error).at(place))
        }
    }
}
