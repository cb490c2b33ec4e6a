//! What comes out of a comparison.

use qvl::error::{Error, Result};
use qvl::grounding::regions;
use qvl::image::Picture;
use qvl::quality::{Distribution, Identity, Overlaps, Recorder, Reference, Statistics, WeightError, distance, to_f16};
use qvl::tokenizer::TokenId;
use qvl::vision::ImageEmbedding;
use serde_json::{Value, json};

use super::super::examples::Example;
use super::run::Listener;

/// Writes down what a reference says.
pub struct Recording<'a> {
    pub recorder: Recorder,
    /// Answers that are read, where they are known.
    pub targets: &'a [Option<Vec<TokenId>>],
    pub n_positions: usize,
}

impl Listener for Recording<'_> {
    fn picture(&mut self, _: usize, picture: &Picture, embedding: &ImageEmbedding) -> Result<()> {
        self.recorder.picture(Identity::picture(picture), &to_f16(embedding)?, embedding.d_out)
    }

    fn targets(&self, example: usize) -> Option<Vec<TokenId>> {
        self.targets[example].clone()
    }

    fn position(&mut self, _: usize, _: usize, logits: &[f32], target: TokenId) {
        self.recorder.position(logits, target);
        self.n_positions += 1;
    }

    fn answer(&mut self, _: usize, answer: String) {
        self.recorder.answer(answer);
    }
}

/// A model held against a reference.
pub struct Report<'a> {
    reference: &'a Reference,
    examples: &'a [Example],
    pub cosine: Statistics,
    pub min_cosine: f64,
    pub relative_l2: Statistics,
    pub divergence: Statistics,
    /// Probability of all tokens that the reference keeps no probability of.
    pub rest: Statistics,
    pub kept: usize,
    pub n_same_best: usize,
    pub nll: Statistics,
    pub reference_nll: Statistics,
    /// Answers as those expected, where there are some: of the model, of the reference.
    pub n_expected: usize,
    pub n_exact: [usize; 2],
    pub n_same_answer: usize,
    /// Boxes of the model and of the reference against the expected ones, which are the reference's where no answer is known.
    pub boxes: [Overlaps; 2],
    /// What became of the weights, where the reference is a model's file.
    pub weights: Option<Vec<WeightError>>,
}

impl<'a> Report<'a> {
    /// Nothing heard yet.
    pub fn new(reference: &'a Reference, examples: &'a [Example]) -> Self {
        Report {
            reference,
            examples,
            cosine: Statistics::default(),
            min_cosine: 1.0,
            relative_l2: Statistics::default(),
            divergence: Statistics::default(),
            rest: Statistics::default(),
            kept: 0,
            n_same_best: 0,
            nll: Statistics::default(),
            reference_nll: Statistics::default(),
            n_expected: 0,
            n_exact: [0; 2],
            n_same_answer: 0,
            boxes: [Overlaps::default(), Overlaps::default()],
            weights: None,
        }
    }

    /// How many examples there are.
    pub fn n_examples(&self) -> usize {
        self.examples.len()
    }

    /// The reference's name and type.
    pub fn reference_name(&self) -> &str {
        &self.reference.model
    }

    /// What was compared, a line for people.
    pub fn note(&self) -> String {
        let (n, n_positions, n_pictures) = (self.examples.len(), self.divergence.len(), self.cosine.len());
        format!(
            "{n} examples, {n_positions} positions, {n_pictures} pictures; against {}; KL over the {} most likely tokens and the \
             rest as one, which has {:.1e} of the probability\n",
            self.reference.model,
            self.kept,
            self.rest.mean()
        )
    }

    /// Share of the positions with the same most likely token.
    pub fn agreement(&self) -> f64 {
        self.n_same_best as f64 / self.divergence.len().max(1) as f64
    }

    /// Of the model and of the reference.
    pub fn perplexity(&self) -> [f64; 2] {
        [self.nll.mean().exp(), self.reference_nll.mean().exp()]
    }

    /// All of it as a JSON object.
    pub fn json(&self) -> Value {
        let (kl, perplexity) = (&self.divergence, self.perplexity());
        let share = |n: usize, of: usize| (of > 0).then(|| n as f64 / of as f64);
        let [boxes, reference_boxes] = &self.boxes;
        let embedding = (!self.cosine.is_empty()).then(|| {
            json!({
                "cosine_mean": self.cosine.mean(),
                "cosine_min": self.min_cosine,
                "relative_l2_mean": self.relative_l2.mean(),
                "relative_l2_max": self.relative_l2.max(),
            })
        });
        let boxes = (boxes.n > 0).then(|| {
            json!({
                "expected": boxes.n,
                "iou_mean": boxes.mean(),
                "hit_rate": boxes.hit_rate(),
                "reference_iou_mean": reference_boxes.mean(),
                "reference_hit_rate": reference_boxes.hit_rate(),
            })
        });
        let mut json = json!({
            "reference": self.reference.model,
            "examples": self.examples.len(),
            "positions": kl.len(),
            "pictures": self.cosine.len(),
            "embedding": embedding,
            "kl": {"mean": kl.mean(), "median": kl.quantile(0.5), "p99": kl.quantile(0.99), "max": kl.max()},
            "kept_tokens": self.kept,
            "rest_mass_mean": self.rest.mean(),
            "top1_agreement": self.agreement(),
            "perplexity": {"model": perplexity[0], "reference": perplexity[1]},
            "answers": {
                "expected": self.n_expected,
                "exact": share(self.n_exact[0], self.n_expected),
                "reference_exact": share(self.n_exact[1], self.n_expected),
                "same_as_reference": share(self.n_same_answer, self.examples.len()),
            },
            "boxes": boxes,
        });
        if let Some(weights) = &self.weights {
            let one = |w: &WeightError| {
                let (ty, reference_type) = (w.ty.name(), w.reference_ty.name());
                json!({"name": w.name, "type": ty, "reference_type": reference_type, "relative_l2": w.relative_l2})
            };
            json["tensors"] = weights.iter().map(one).collect();
        }
        json
    }
}

impl Listener for Report<'_> {
    fn picture(&mut self, number: usize, picture: &Picture, embedding: &ImageEmbedding) -> Result<()> {
        if self.reference.identity.pictures.get(number) != Some(&Identity::picture(picture)) {
            let message = format!("picture {} of the examples is not the one that the reference saw", number + 1);
            return Err(Error::usage(message));
        }
        if self.reference.shape() != (embedding.n_queries, embedding.d_out) {
            return Err(Error::model("the reference's embeddings have other dimensions: it is of another model"));
        }
        let (expected, n) = self.reference.embedding(number);
        let found = distance(expected, &to_f16(embedding)?, n);
        self.cosine.add(found.cosine);
        self.min_cosine = self.min_cosine.min(found.min_cosine);
        self.relative_l2.add(found.relative_l2);
        Ok(())
    }

    fn targets(&self, example: usize) -> Option<Vec<TokenId>> {
        Some(self.reference.targets(example).to_vec())
    }

    fn position(&mut self, example: usize, nth: usize, logits: &[f32], target: TokenId) {
        let (expected, logprob) = self.reference.at(example, nth);
        self.divergence.add(expected.divergence(logits));
        self.rest.add(f64::from(expected.rest).exp());
        self.kept = expected.ids.len();
        self.n_same_best += usize::from(Distribution::of(logits, 1).best() == expected.best());
        self.nll.add(-f64::from(Distribution::logprob(logits, target.to_u32())));
        self.reference_nll.add(-f64::from(logprob));
    }

    fn answer(&mut self, example: usize, answer: String) {
        let reference = &self.reference.answers[example];
        self.n_same_answer += usize::from(answer == *reference);
        let expected = self.examples[example].expected();
        if let Some(expected) = expected {
            self.n_expected += 1;
            self.n_exact[0] += usize::from(answer == expected);
            self.n_exact[1] += usize::from(reference == expected);
        }
        let (boxes, _) = regions(expected.unwrap_or(reference));
        self.boxes[0].add(&boxes, &regions(&answer).0);
        self.boxes[1].add(&boxes, &regions(reference).0);
    }
}
