//! Every GGUF key and tensor name that the two programs agree on. The only place where one is spelled.
//!
//! Text names are llama.cpp's for the architecture `qwen`; vision names are its `clip` names where it has them (the
//! resampler's follow its MiniCPM-V projector). Keys under `qvl.` are our own. Extents are ggml's `[ne0, ne1, ..]`.

/// Metadata keys of the text file.
pub mod text {
    /// `general.architecture` of a text file.
    pub const ARCHITECTURE: &str = "qwen";
    /// Positions that the model was made for at most, u32.
    pub const CONTEXT_LENGTH: &str = "qwen.context_length";
    /// Width of a token embedding, u32.
    pub const EMBEDDING_LENGTH: &str = "qwen.embedding_length";
    /// Number of layers, u32.
    pub const BLOCK_COUNT: &str = "qwen.block_count";
    /// Twice the rows of one feed-forward matrix (llama.cpp's graph halves it), u32.
    pub const FEED_FORWARD_LENGTH: &str = "qwen.feed_forward_length";
    /// Attention heads, u32.
    pub const HEAD_COUNT: &str = "qwen.attention.head_count";
    /// Tokens of a model without a vocabulary, u32. In no file of ours: llama.cpp is told it when it loads one.
    pub const VOCAB_SIZE: &str = "qwen.vocab_size";
    /// RMSNorm epsilon, f32.
    pub const RMS_EPS: &str = "qwen.attention.layer_norm_rms_epsilon";
    /// Rotary base before dynamic NTK, f32.
    pub const ROPE_FREQ_BASE: &str = "qwen.rope.freq_base";
    /// Rotated values a head, u32; equal to the head's width.
    pub const ROPE_DIMENSION_COUNT: &str = "qwen.rope.dimension_count";
    /// The checkpoint's `seq_length`: where dynamic NTK and logn attention begin, u32.
    pub const SEQ_LENGTH: &str = "qvl.seq_length";
    /// Whether the rotary base grows with prompts beyond `seq_length`, bool.
    pub const USE_DYNAMIC_NTK: &str = "qvl.use_dynamic_ntk";
    /// Whether queries beyond `seq_length` are scaled by log(p+1)/log(seq_length), bool.
    pub const USE_LOGN_ATTN: &str = "qvl.use_logn_attn";
    /// Slots a picture takes between its tags, u32; equals the mmproj's number of queries.
    pub const N_QUERIES: &str = "qvl.n_queries";
    /// `chatml` or `raw`: how a question becomes a prompt.
    pub const CHAT_FORMAT: &str = "qvl.chat_format";
    /// Tokens of history that a chat prompt may hold, u32.
    pub const MAX_WINDOW_SIZE: &str = "qvl.max_window_size";
    /// What stands in front of a picture's tag, `{k}` being its number: `Picture {k}: ` (one checkpoint has no space).
    pub const PICTURE_FORMAT: &str = "qvl.picture_format";
    /// Default number of tokens to generate, u32.
    pub const MAX_NEW_TOKENS: &str = "qvl.max_new_tokens";
}

/// Sampling defaults of the checkpoint, llama.cpp's names.
pub mod sampling {
    /// Temperature, f32; 0 is greedy.
    pub const TEMP: &str = "general.sampling.temp";
    /// Most likely tokens kept, i32; 0 keeps all.
    pub const TOP_K: &str = "general.sampling.top_k";
    /// Probability mass kept, f32.
    pub const TOP_P: &str = "general.sampling.top_p";
    /// Repetition penalty, f32; 1 is none.
    pub const REPEAT_PENALTY: &str = "general.sampling.penalty_repeat";
}

/// Keys that both files have.
pub mod general {
    /// Architecture: `qwen` or `clip`.
    pub const ARCHITECTURE: &str = "general.architecture";
    /// `model` or `mmproj`.
    pub const TYPE: &str = "general.type";
    /// Human-readable name.
    pub const NAME: &str = "general.name";
    /// Number of llama.cpp's `enum llama_ftype`.
    pub const FILE_TYPE: &str = "general.file_type";
    /// Version of ggml's block layouts, 2.
    pub const QUANTIZATION_VERSION: &str = "general.quantization_version";
    /// The type that was asked for: `q4_k_m`, ..
    pub const RECIPE: &str = "qvl.recipe";
    /// How many tensors have which type: `q4_k: 96, f32: 97`.
    pub const TENSOR_TYPES: &str = "qvl.tensor_types";
    /// Tensors that could not hold the recipe's type: `name: wanted -> used`, one a line.
    pub const FALLBACKS: &str = "qvl.fallbacks";
    /// Identifies the vision tower; a text file and an mmproj belong together when theirs are equal.
    pub const VISION_ID: &str = "qvl.vision_id";
    /// The recipe of the GGUF that the weights were converted from, where that one had lost something already.
    pub const REQUANTISED_FROM: &str = "qvl.requantised_from";
    /// LoRA adapters that were merged into the weights, one a line.
    pub const LORA: &str = "qvl.lora";
    /// SHA-256 of the tensors' bytes, 64 lower-case hexadecimal digits.
    pub const CHECKSUM: &str = "qvl.sha256";
}

/// Keys and names of a LoRA adapter's file, llama.cpp's (`llama-adapter.cpp`).
pub mod adapter {
    /// `general.type` of an adapter.
    pub const GENERAL_TYPE: &str = "adapter";
    /// Kind of adapter: [`LORA`].
    pub const TYPE: &str = "adapter.type";
    /// Value of [`TYPE`].
    pub const LORA: &str = "lora";
    /// α, f32: a product B·A counts α / rank times.
    pub const ALPHA: &str = "adapter.lora.alpha";
    /// End of the name of A, `[ne0 of the weight, rank]`, after the weight's own name.
    pub const A: &str = ".lora_a";
    /// End of the name of B, `[rank, ne1 of the weight]`.
    pub const B: &str = ".lora_b";
}

/// Importance matrices: their file, and what a file that was quantised with one says of it. All llama.cpp's names.
pub mod imatrix {
    /// `general.type` of the file.
    pub const TYPE: &str = "imatrix";
    /// What was read, strings.
    pub const DATASETS: &str = "imatrix.datasets";
    /// Texts that were read, u32.
    pub const CHUNK_COUNT: &str = "imatrix.chunk_count";
    /// Positions of such a text, u32.
    pub const CHUNK_SIZE: &str = "imatrix.chunk_size";
    /// Follows a weight's name: sums of squares, `[ne0 of the weight, 1]`.
    pub const SUMS: &str = ".in_sum2";
    /// Follows a weight's name: rows that were summed up, `[1, 1]`.
    pub const COUNTS: &str = ".counts";
    /// The file, string.
    pub const USED_FILE: &str = "quantize.imatrix.file";
    /// The first of its datasets, string.
    pub const USED_DATASET: &str = "quantize.imatrix.dataset";
    /// Weights that it knows, u32.
    pub const USED_ENTRIES: &str = "quantize.imatrix.entries_count";
    /// Texts that it was made from, u32.
    pub const USED_CHUNKS: &str = "quantize.imatrix.chunks_count";
    /// The four that a model's file may have.
    pub const USED: [&str; 4] = [USED_FILE, USED_DATASET, USED_ENTRIES, USED_CHUNKS];
}

/// What `qvl quality --save` measured, in the text file.
pub mod quality {
    /// What all of these begin with.
    pub const PREFIX: &str = "qvl.quality.";
    /// Name and types of the reference, string.
    pub const REFERENCE: &str = "qvl.quality.reference";
    /// Name of the file of examples, string.
    pub const DATA: &str = "qvl.quality.data";
    /// Examples, u32.
    pub const EXAMPLES: &str = "qvl.quality.examples";
    /// Positions of their answers, u32.
    pub const POSITIONS: &str = "qvl.quality.positions";
    /// Mean KL divergence of the next token from the reference, nats, f32.
    pub const KL_MEAN: &str = "qvl.quality.kl_mean";
    /// What 99 % of the positions do not exceed, nats, f32.
    pub const KL_P99: &str = "qvl.quality.kl_p99";
    /// Share of positions with the same most likely token, f32.
    pub const TOP1_AGREEMENT: &str = "qvl.quality.top1_agreement";
    /// Perplexity of the answers, f32.
    pub const PERPLEXITY: &str = "qvl.quality.perplexity";
    /// The reference's, f32.
    pub const REFERENCE_PERPLEXITY: &str = "qvl.quality.reference_perplexity";
    /// Mean cosine of the pictures' embeddings (of the mmproj that was used), f32.
    pub const EMBEDDING_COSINE: &str = "qvl.quality.embedding_cosine";
    /// Mean intersection over union of boxes with the expected ones, f32.
    pub const BOX_IOU: &str = "qvl.quality.box_iou";
}

/// References that `qvl quality` compares with: a GGUF file of our own form.
pub mod reference {
    /// `general.type` of the file.
    pub const TYPE: &str = "qvl-reference";
    /// SHA-256 over all tensors' data in file order, hex.
    pub const CHECKSUM: &str = "qvl.reference.checksum";
    /// Name and types of the model that made it, for people.
    pub const MODEL: &str = "qvl.reference.model";
    /// SHA-256 of its vocabulary, hex.
    pub const VOCABULARY: &str = "qvl.reference.vocabulary";
    /// SHA-256 of the examples, hex.
    pub const DATA: &str = "qvl.reference.data";
    /// SHA-256 of each picture's pixels, hex.
    pub const PICTURES: &str = "qvl.reference.pictures";
    /// The model's own greedy answer to each example, strings.
    pub const ANSWERS: &str = "qvl.reference.answers";
    /// Positions of each example's answer, `[examples]`, i32.
    pub const LENGTHS: &str = "lengths";
    /// Token that follows at each position, `[positions]`, i32.
    pub const TARGETS: &str = "targets";
    /// Its log-probability, `[positions]`, f32.
    pub const TARGET_LOGPROBS: &str = "target_logprobs";
    /// Most likely tokens of each position, `[k, positions]`, i32.
    pub const IDS: &str = "ids";
    /// Their log-probabilities, `[k, positions]`, f32.
    pub const LOGPROBS: &str = "logprobs";
    /// Log-probability of any other token, `[positions]`, f32.
    pub const REST: &str = "rest";
    /// Embeddings, `[d_out, n_queries, pictures]`, f16.
    pub const EMBEDDINGS: &str = "embeddings";
}

/// Metadata keys of the vocabulary, llama.cpp's names.
pub mod vocab {
    /// `gpt2`: byte-level BPE.
    pub const MODEL: &str = "tokenizer.ggml.model";
    /// `qwen2`: the pre-tokenizer's pattern.
    pub const PRE: &str = "tokenizer.ggml.pre";
    /// Tokens by id, strings in GPT-2's byte alphabet.
    pub const TOKENS: &str = "tokenizer.ggml.tokens";
    /// Types by id, i32: 1 normal, 3 control, 5 unused.
    pub const TOKEN_TYPE: &str = "tokenizer.ggml.token_type";
    /// Merges, `left right`, in rank order.
    pub const MERGES: &str = "tokenizer.ggml.merges";
    /// End of text, u32.
    pub const EOS: &str = "tokenizer.ggml.eos_token_id";
    /// End of turn, u32.
    pub const EOT: &str = "tokenizer.ggml.eot_token_id";
    /// Padding, u32.
    pub const PADDING: &str = "tokenizer.ggml.padding_token_id";
    /// Always false here.
    pub const ADD_BOS: &str = "tokenizer.ggml.add_bos_token";
    /// Jinja template for programs that use one.
    pub const CHAT_TEMPLATE: &str = "tokenizer.chat_template";
}

/// Metadata keys of the mmproj.
pub mod vision {
    /// `general.architecture` of an mmproj.
    pub const ARCHITECTURE: &str = "clip";
    /// Value of [`PROJECTOR_TYPE`].
    pub const PROJECTOR: &str = "qwenvl_resampler";
    /// Always true.
    pub const HAS_VISION_ENCODER: &str = "clip.has_vision_encoder";
    /// Which adapter follows the transformer.
    pub const PROJECTOR_TYPE: &str = "clip.projector_type";
    /// Whether the feed-forward activation is GELU (here the exact, erf form), bool.
    pub const USE_GELU: &str = "clip.use_gelu";
    /// Height and width of the input in pixels, u32.
    pub const IMAGE_SIZE: &str = "clip.vision.image_size";
    /// Height and width of a patch in pixels, u32.
    pub const PATCH_SIZE: &str = "clip.vision.patch_size";
    /// Width of the transformer, u32.
    pub const EMBEDDING_LENGTH: &str = "clip.vision.embedding_length";
    /// Rows of the first feed-forward matrix, u32.
    pub const FEED_FORWARD_LENGTH: &str = "clip.vision.feed_forward_length";
    /// Number of layers, u32.
    pub const BLOCK_COUNT: &str = "clip.vision.block_count";
    /// Attention heads of the transformer, u32.
    pub const HEAD_COUNT: &str = "clip.vision.attention.head_count";
    /// LayerNorm epsilon of the transformer and the adapter, f32.
    pub const LAYER_NORM_EPS: &str = "clip.vision.attention.layer_norm_epsilon";
    /// Width of an embedding that leaves the adapter, u32.
    pub const PROJECTION_DIM: &str = "clip.vision.projection_dim";
    /// Mean of each channel, 3 × f32.
    pub const IMAGE_MEAN: &str = "clip.vision.image_mean";
    /// Standard deviation of each channel, 3 × f32.
    pub const IMAGE_STD: &str = "clip.vision.image_std";
    /// Queries of the adapter, u32: embeddings a picture.
    pub const N_QUERIES: &str = "qvl.n_queries";
    /// Attention heads of the adapter, u32.
    pub const RESAMPLER_HEAD_COUNT: &str = "qvl.resampler.head_count";
}

/// Tensor names of the text file.
pub mod text_tensor {
    /// `[n_embd, n_vocab]`
    pub const TOKEN_EMBD: &str = "token_embd.weight";
    /// `[n_embd]`
    pub const OUTPUT_NORM: &str = "output_norm.weight";
    /// `[n_embd, n_vocab]`
    pub const OUTPUT: &str = "output.weight";
    /// Names inside layer `il`: `attn_norm.weight`, `attn_qkv.weight`, ..
    pub fn blk(il: usize, part: &str) -> String {
        format!("blk.{il}.{part}")
    }
    /// Parts of a layer with their meaning: `[n_embd]`; `[n_embd, 3·n_embd]`; `[3·n_embd]`; `[n_embd, n_embd]`;
    /// `[n_embd]`; `[n_embd, n_ff]` (w1, linear branch); `[n_embd, n_ff]` (w2, gated branch); `[n_ff, n_embd]`.
    pub const PARTS: [&str; 8] = [
        "attn_norm.weight",
        "attn_qkv.weight",
        "attn_qkv.bias",
        "attn_output.weight",
        "ffn_norm.weight",
        "ffn_up.weight",
        "ffn_gate.weight",
        "ffn_down.weight",
    ];
}

/// Tensor names of the mmproj.
pub mod vision_tensor {
    /// `[patch, patch, 3, n_embd]`
    pub const PATCH_EMBD: &str = "v.patch_embd.weight";
    /// `[n_embd, n_patches]`, f32, already interpolated to the grid of patches.
    pub const POSITION_EMBD: &str = "v.position_embd.weight";
    /// `[n_embd]`
    pub const PRE_LN_W: &str = "v.pre_ln.weight";
    /// `[n_embd]`
    pub const PRE_LN_B: &str = "v.pre_ln.bias";
    /// Names inside layer `il`: `ln1.weight`, `attn_qkv.weight` (rows q, then k, then v), `ffn_up.bias`, ..
    pub fn blk(il: usize, part: &str) -> String {
        format!("v.blk.{il}.{part}")
    }
    /// Parts of a layer, each with weight and bias: `[n_embd]`; `[n_embd, 3·n_embd]` (rows q, then k, then v, head-major);
    /// `[n_embd, n_embd]`; `[n_embd]`; `[n_embd, n_ff]`; `[n_ff, n_embd]`. A bias is `[ne1]` of its weight.
    pub const PARTS: [&str; 12] = [
        "ln1.weight",
        "ln1.bias",
        "attn_qkv.weight",
        "attn_qkv.bias",
        "attn_out.weight",
        "attn_out.bias",
        "ln2.weight",
        "ln2.bias",
        "ffn_up.weight",
        "ffn_up.bias",
        "ffn_down.weight",
        "ffn_down.bias",
    ];
    /// `[n_embd, d]`; absent when the transformer is as wide as the adapter.
    pub const KV_PROJ: &str = "resampler.kv.weight";
    /// `[d]`
    pub const LN_KV_W: &str = "resampler.ln_kv.weight";
    /// `[d]`
    pub const LN_KV_B: &str = "resampler.ln_kv.bias";
    /// `[d, n_queries]`, f32: the projected queries, (ln_q(query) + pos_embed)·Wqᵀ + bq. Constant after training.
    pub const ATTN_QUERY: &str = "resampler.attn.query";
    /// `[d, d]`
    pub const ATTN_K_W: &str = "resampler.attn.k.weight";
    /// `[d, n_patches]`, f32: what positions and bias add to the keys, P·Wkᵀ + bk. Constant after training.
    pub const ATTN_K_POSITION: &str = "resampler.attn.k.position";
    /// `[d, d]`
    pub const ATTN_V_W: &str = "resampler.attn.v.weight";
    /// `[d]`
    pub const ATTN_V_B: &str = "resampler.attn.v.bias";
    /// `[d, d]`
    pub const ATTN_OUT_W: &str = "resampler.attn.out.weight";
    /// `[d]`
    pub const ATTN_OUT_B: &str = "resampler.attn.out.bias";
    /// `[d]`
    pub const LN_POST_W: &str = "resampler.ln_post.weight";
    /// `[d]`
    pub const LN_POST_B: &str = "resampler.ln_post.bias";
    /// `[d, d]`, the transpose of the checkpoint's matrix.
    pub const PROJ: &str = "resampler.proj.weight";
}
