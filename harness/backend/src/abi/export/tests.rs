use std::ptr::{null, null_mut};

use super::*;
use crate::{Completion, Descriptor, Dtype, GenerateConfig, OpenConfig, Scores, SessionInfo};

/// Scores every token as certain.
#[derive(Default)]
struct Sure;

impl Backend for Sure {
    fn describe(&self) -> Descriptor {
        Descriptor {
            name: "sure".into(),
            version: "1".into(),
            capabilities: Vec::new(),
            devices: Vec::new(),
            dtypes: Vec::new(),
            model_families: Vec::new(),
            build: Default::default(),
        }
    }
    fn open(&self, _: &OpenConfig) -> Result<Box<dyn Session>, BackendError> {
        Ok(Box::new(Sure))
    }
}

impl Session for Sure {
    fn evaluator(&mut self) -> Option<&mut dyn Evaluator> {
        Some(self)
    }
    fn info(&self) -> SessionInfo {
        SessionInfo {
            device: "cpu".into(),
            dtype: Dtype::F32,
            threads: 1,
            kernels: Vec::new(),
            parameters: 0,
            adapter_parameters: 0,
            vocab_size: 1,
            max_positions: 1,
            warnings: Vec::new(),
        }
    }
}

impl Evaluator for Sure {
    fn score(&mut self, rows: TokensView<'_>, _: &mut dyn EventSink) -> Result<Scores, BackendError> {
        let len = rows.iter().map(|row| row.len().max(1) - 1).sum();
        Ok(Scores { logprobs: vec![0.0; len], greedy: vec![true; len] })
    }
    fn generate(
        &mut self,
        _: TokensView<'_>,
        _: &GenerateConfig,
        _: &mut dyn EventSink,
    ) -> Result<Vec<Completion>, BackendError> {
        Err(BackendError::unsupported("nothing to say"))
    }
}

unsafe extern "C" fn go_on(_: *mut c_void, _: Slice) -> i32 {
    0
}

const SINK: Sink = Sink { ctx: null_mut(), event: Some(go_on) };
const NO_SCORES: ScoresOut = ScoresOut { logprobs: null_mut(), greedy: null_mut(), len: 0 };

fn lend(text: &str) -> Slice {
    Slice { ptr: text.as_ptr(), len: text.len() }
}

/// The status and the text of an answer, which is released.
fn told(function: impl FnOnce(*mut Owned) -> i32) -> (i32, String) {
    let mut out = Owned::EMPTY;
    let status = function(&mut out);
    let text = if out.len == 0 {
        String::new()
    } else {
        // SAFETY: made by `give`.
        String::from_utf8_lossy(unsafe { std::slice::from_raw_parts(out.ptr, out.len) }).into_owned()
    };
    // SAFETY: the maker's own function; that a second call does nothing is part of the test.
    unsafe {
        release(&mut out);
        release(&mut out);
    }
    (status, text)
}

#[test]
fn a_host_that_gives_null_is_told_so() {
    // SAFETY: null is what these functions are to survive; all else is proper.
    unsafe {
        assert_eq!(describe::<Sure>(null_mut()), 1);
        assert_eq!(close(null_mut()), 0);
        release(null_mut());
        let config = lend(r#"{"model": "m"}"#);
        let (status, text) = told(|out| open::<Sure>(config, null_mut(), out));
        assert!(status == 1 && text.contains("no place for the session"), "{text}");
        let (status, text) = told(|out| open::<Sure>(Slice { ptr: null(), len: 3 }, &mut null_mut(), out));
        assert!(status == 1 && text.contains("JSON text"), "{text}");
        let (status, text) = told(|out| open::<Sure>(lend("\u{7}{"), &mut null_mut(), out));
        assert!(status == 1 && text.contains("open configuration"), "{text}");

        let mut session = null_mut();
        assert_eq!(told(|out| open::<Sure>(config, &mut session, out)).0, 0);
        let offsets = [0usize, 3];
        let ids = [1u32, 2, 3];
        let rows = Tokens { ids: ids.as_ptr(), offsets: offsets.as_ptr(), rows: 1 };
        let unordered = [0usize, 5, 3];
        for (rows, sink, wanted) in [
            (Tokens { ids: null(), ..rows }, SINK, "token ids"),
            (Tokens { offsets: null(), ..rows }, SINK, "row offsets"),
            (Tokens { rows: usize::MAX, ..rows }, SINK, "row offsets"),
            (Tokens { rows: 2, offsets: unordered.as_ptr(), ..rows }, SINK, "must rise"),
            (Tokens { ids: ids.as_ptr().byte_add(1), ..rows }, SINK, "token ids"),
            (rows, Sink { event: None, ..SINK }, "callback"),
            (rows, SINK, "2 log-probabilities and 2 flags were made for 0"),
        ] {
            let (status, text) = told(|out| score(session, rows, sink, NO_SCORES, out));
            assert!(status == 1 && text.contains(wanted), "{wanted}: {text}");
        }
        let (status, text) = told(|out| score(session, rows, SINK, ScoresOut { len: 2, ..NO_SCORES }, out));
        assert!(status == 1 && text.contains("no place for the scores"), "{text}");
        let (status, text) = told(|out| score(null_mut(), rows, SINK, NO_SCORES, out));
        assert!(status == 1 && text.contains("no session"), "{text}");
        let labelled = Labelled { tokens: rows, labels: null() };
        let (status, text) = told(|out| train(session, labelled, labelled, lend("{}"), SINK, out));
        assert!(status == 1 && text.contains("labels"), "{text}");

        // None of it hurt the session.
        let (mut logprobs, mut greedy) = ([1.0f32; 2], [7u8; 2]);
        let scores = ScoresOut { logprobs: logprobs.as_mut_ptr(), greedy: greedy.as_mut_ptr(), len: 2 };
        assert_eq!(told(|out| score(session, rows, SINK, scores, out)), (0, String::new()));
        assert_eq!((logprobs, greedy), ([0.0; 2], [1; 2]));
        let prompts = r#"{"max_new_tokens": 1}"#;
        assert_eq!(told(|out| generate(session, rows, lend(prompts), SINK, out)).0, 4);
        assert_eq!(close(session), 0);
    }
    assert_eq!(owned_alive(), 0);
}
