//! What the runtime reads: models, sessions, the cache.

use std::path::Path;

use qvl::cache::{Key, Store};
use qvl::conversation::{Saved, SessionFile};
use qvl::gguf::{DEFAULT_ALIGNMENT, Gguf, Layout, Metadata, TensorSpec};
use qvl::session::{ModelId, TextFile};
use qvl::text::{self, TextHparams};
use qvl::vision::VisionHparams;

use super::{file, sealed, seeds};

/// A GGUF's header, and what both kinds of models need of it. What was read can be written, and is the same then.
pub fn gguf(data: &[u8]) {
    let Ok(gguf) = Gguf::parse(data) else { return };
    for tensor in gguf.tensors() {
        assert_eq!(tensor.bytes(data).len() as u64, tensor.n_bytes);
    }
    if let Ok(hparams) = TextHparams::read(&gguf) {
        assert!(hparams.d_head() * hparams.n_head == hparams.n_embd);
        let _ = text::check(&gguf, &hparams);
        let _ = text::check_adapter(&gguf, &hparams);
    }
    let _ = text::check_adapter_form(&gguf);
    if let Ok(hparams) = VisionHparams::read(&gguf) {
        assert!(hparams.n_patches > 0 && hparams.n_embd.is_multiple_of(hparams.n_head));
    }
    written_again(&gguf);
}

fn written_again(gguf: &Gguf) {
    let metadata = Metadata(gguf.metadata().to_vec());
    let spec = |t: &qvl::gguf::TensorInfo| TensorSpec { name: t.name.clone(), dims: t.dims.clone(), ty: t.ty };
    let tensors: Vec<_> = gguf.tensors().iter().map(spec).collect();
    let layout = Layout::new(&metadata, &tensors, DEFAULT_ALIGNMENT).expect("a layout of tensors that were proven");
    let mut bytes = layout.header.clone();
    bytes.resize(layout.file_bytes as usize, 0);
    let again = Gguf::parse(&bytes).expect("a header that was written");
    let others = |gguf: &Gguf| {
        let keys = gguf.metadata().iter().filter(|(key, _)| key != "general.alignment");
        Metadata(keys.cloned().collect())
    };
    let encoded = |m: &Metadata| Layout::new(m, &[], DEFAULT_ALIGNMENT).expect("a layout without tensors").header;
    // As bytes: NaN is not equal to itself.
    assert_eq!(encoded(&others(&again)), encoded(&others(gguf)));
    for ((a, b), (offset, n_bytes)) in again.tensors().iter().zip(gguf.tensors()).zip(&layout.places) {
        assert_eq!((&a.name, &a.dims, a.ty, a.n_bytes), (&b.name, &b.dims, b.ty, b.n_bytes));
        assert_eq!((a.offset, a.n_bytes), (*offset, *n_bytes));
    }
}

/// The model that sessions are of.
fn with_model(f: impl FnOnce(&TextFile, &ModelId)) {
    thread_local! {
        static MODEL: (TextFile, ModelId) = {
            let text = TextFile::open(&file("model.gguf", &seeds::text_model())).expect("the model of the seeds");
            let id = text.id().expect("its name");
            (text, id)
        };
    }
    MODEL.with(|(text, id)| f(text, id));
}

/// A session, whose checksum is put right, and a saved chat. What was read can be written and read again.
pub fn session(data: &[u8]) {
    with_model(|text, id| {
        let bytes = sealed(data);
        let Ok(read) = SessionFile::parse(&bytes, text, id) else { return };
        let mut out = Vec::new();
        read.write(text, id, &mut out).expect("a session into memory");
        let again = SessionFile::parse(&out, text, id).expect("a session that was written");
        assert_eq!(again.conversation.turns(), read.conversation.turns());
        assert_eq!(again.snapshot.read, read.snapshot.read);
    });
    let Ok(saved) = std::str::from_utf8(data).map_err(drop).and_then(|text| Saved::parse(text).map_err(drop)) else {
        return;
    };
    for turn in &saved.turns {
        let _ = turn.sources(Path::new("folder"));
    }
    let text = saved.to_text().expect("a chat as text");
    assert_eq!(Saved::parse(&text).expect("a chat that was written"), saved);
}

/// Both kinds of entries, whose checksums are put right. Whatever is there is a hit that is as large as its file says, or a
/// miss, and a miss is removed.
pub fn cache(data: &[u8]) {
    let key: Key = seeds::KEY.parse().expect("a key");
    let bytes = sealed(data);
    let path = file(&format!("cache/{}.emb", seeds::KEY), &bytes);
    let store = Store::new(path.parent().expect("a directory").to_owned(), 1 << 20);
    match store.get(&key) {
        Some(found) => assert_eq!(found.data.len() * 2 + 84, bytes.len()),
        None => assert!(!path.exists(), "a damaged entry stays"),
    }
    let path = file(&format!("cache/{}.kv", seeds::KEY), &bytes);
    match store.get_prompt(&key, 1 << 16) {
        Ok(Some(state)) => assert_eq!(state.len() + 76, bytes.len()),
        Ok(None) => panic!("a miss without a word"),
        Err(_) => assert!(!path.exists(), "a damaged entry stays"),
    }
}
