//! Every mutation: where, what is broken, and which parity cases see it.
//!
//! Rows of one crate stand together, since each change of crates builds one more of them again.
//!
//! Some things that could be broken are not here, because parity cannot see them:
//!
//! - a default mode of quantization, an override of a layer that is ignored, bits exchanged with the group's
//!   size, a head of its own where the checkpoint has none, adapters in other blocks: each asks for tensors of
//!   other names or shapes, and loading is strict, so that nothing runs that could differ;
//! - numbers in a cache's file that contradict its tensors, as a lost rewind does: reading it is an error;
//! - a prompt whose length the session is not told: it finds out later, and reads again, with the same answer;
//! - pieces of a prompt of over 2048 tokens, padding on the left, tokenizers: no case is so long or has any.
//!
//! Tests of the crates are about all of these.

use super::Mutation;

/// All of them, in the order in which they are tried.
pub(super) const MUTATIONS: &[Mutation] = &[
    // mlx-norms
    Mutation {
        name: "norm_without_epsilon",
        file: "crates/mlx-norms/src/rms.rs",
        find: "mlx_rs::fast::rms_norm(x, Some(weight), eps)",
        replace: "mlx_rs::fast::rms_norm(x, Some(weight), 0.0 * eps)",
        filter: "qwen3_f32_whole",
    },
    Mutation {
        name: "norm_in_half_precision",
        file: "crates/mlx-norms/src/rms.rs",
        find: "mlx_rs::fast::rms_norm(x, Some(weight), eps)",
        replace: "{
            let eps = Array::from_f32(eps).as_dtype(x.dtype())?;
            x.multiply(x.square()?.mean_axis(-1, true)?.add(eps)?.rsqrt()?)?.multiply(weight)
        }",
        filter: "qwen3_bf16_whole",
    },
    Mutation {
        name: "offset_norm_without_one",
        file: "crates/mlx-norms/src/offset.rs",
        find: "Array::from_f32(1.0).as_dtype(weight.dtype())?.add(weight)",
        replace: "Ok(weight.clone())",
        filter: "gemma3_f32_whole",
    },
    Mutation {
        name: "residual_not_clipped",
        file: "crates/mlx-norms/src/clip.rs",
        find: "if x.dtype() != Dtype::Float16 {",
        replace: "if x.dtype() != Dtype::Bool {",
        filter: "gemma3_f16_clipped",
    },
    // mlx-rope
    Mutation {
        name: "rotation_turns_the_other_way",
        file: "crates/mlx-rope/src/rope.rs",
        find: "let scale = scale * direction;",
        replace: "let scale = -scale * direction;",
        filter: "rope_",
    },
    Mutation {
        name: "pairs_of_the_other_layout",
        file: "crates/mlx-rope/src/rope.rs",
        find: "let interleaved = self.layout == RopeLayout::Interleaved;",
        replace: "let interleaved = self.layout != RopeLayout::Interleaved;",
        filter: "rope_",
    },
    Mutation {
        name: "one_offset_for_all_rows",
        file: "crates/mlx-rope/src/rope.rs",
        find: "let position = Position::PerRow(Array::from_slice(offsets, &[batch]));",
        replace: "let position = Position::One(offsets[0]);",
        filter: "rope_default",
    },
    Mutation {
        name: "attention_factor_dropped",
        file: "crates/mlx-rope/src/rope.rs",
        find: "(self.scaled(x, factor as f32)?, None, 1.0, Some(periods))",
        replace: "(self.scaled(x, 0.0 * factor as f32 + 1.0)?, None, 1.0, Some(periods))",
        filter: "rope_yarn",
    },
    Mutation {
        name: "linear_factor_upside_down",
        file: "crates/mlx-rope/src/rope.rs",
        find: "scale: (1.0 / factor) as f32",
        replace: "scale: *factor as f32",
        filter: "rope_linear",
    },
    Mutation {
        name: "dynamic_base_off_by_one_length",
        file: "crates/mlx-rope/src/rope.rs",
        find: "let growth = factor * length / trained",
        replace: "let growth = factor * (length + 1.0) / trained",
        filter: "rope_dynamic",
    },
    Mutation {
        name: "long_rope_border_off_by_one",
        file: "crates/mlx-rope/src/rope.rs",
        find: "Angles::Table(if length > *original { long } else { short })",
        replace: "Angles::Table(if length >= *original { long } else { short })",
        filter: "hf_phi3_longrope",
    },
    Mutation {
        name: "long_rope_lists_exchanged",
        file: "crates/mlx-rope/src/rope.rs",
        find: "Angles::Table(if length > *original { long } else { short })",
        replace: "Angles::Table(if length > *original { short } else { long })",
        filter: "hf_phi3_longrope",
    },
    Mutation {
        name: "long_rope_factor_without_root",
        file: "crates/mlx-rope/src/rope.rs",
        find: "Ok((1.0 + factor.ln() / f64::from(original).ln()).sqrt())",
        replace: "Ok(1.0 + factor.ln() / f64::from(original).ln())",
        filter: "phi3_longrope",
    },
    Mutation {
        name: "periods_with_another_exponent",
        file: "crates/mlx-rope/src/periods.rs",
        find: ".divide(number(f64::from(of)))?;",
        replace: ".divide(number(f64::from(of - 2)))?;",
        filter: "rope_llama3",
    },
    Mutation {
        name: "yarn_ramp_the_other_way",
        file: "crates/mlx-rope/src/periods.rs",
        find: "let kept = number(1.0).subtract(clip(ramp, (0.0, 1.0))?)?;",
        replace: "let kept = clip(ramp, (0.0, 1.0))?;",
        filter: "rope_yarn",
    },
    Mutation {
        name: "partial_rotation_ignored",
        file: "crates/mlx-rope/src/config.rs",
        find: "let dims = (f64::from(head_dim) * fraction(self.partial_rotary_factor)?) as i32;",
        replace: "let dims = head_dim;",
        filter: "phi3_partial",
    },
    Mutation {
        name: "rows_on_both_sides_of_a_border_rotated_alike",
        file: "crates/mlx-rope/src/rope.rs",
        find: "if offsets.iter().all(|&offset| self.rotates_alike(first, total(offset))) {",
        replace: "if offsets.iter().all(|&offset| self.rotates_alike(first, total(offset)) || true) {",
        filter: "rope_transformers",
    },
    Mutation {
        name: "yarn_always_truncated",
        file: "crates/mlx-rope/src/periods.rs",
        find: "    if truncate {\n",
        replace: "    if truncate || true {\n",
        filter: "rope_transformers",
    },
    Mutation {
        name: "long_mscale_ignored",
        file: "crates/mlx-rope/src/rope.rs",
        find: "let long = table(&self.long_factor, self.long_mscale)?;",
        replace: "let long = table(&self.long_factor, None)?;",
        filter: "rope_transformers",
    },
    Mutation {
        name: "short_mscale_ignored",
        file: "crates/mlx-rope/src/rope.rs",
        find: "short: table(&self.short_factor, self.short_mscale)?",
        replace: "short: table(&self.short_factor, None)?",
        filter: "rope_transformers",
    },
    Mutation {
        name: "given_attention_factor_ignored",
        file: "crates/mlx-rope/src/scaling.rs",
        find: "self.attention_factor.unwrap_or_else(quotient)",
        replace: "quotient()",
        filter: "hf_olmo3_yarn",
    },
    Mutation {
        name: "yarn_mscales_exchanged",
        file: "crates/mlx-rope/src/scaling.rs",
        find: "mscale(self.factor, self.mscale) / mscale(self.factor, self.mscale_all_dim)",
        replace: "mscale(self.factor, self.mscale_all_dim) / mscale(self.factor, self.mscale)",
        filter: "rope_yarn",
    },
    Mutation {
        name: "whole_head_scaled_where_a_part_turns",
        file: "crates/mlx-rope/src/rope.rs",
        find: "if x.dim(-1) == self.dims {",
        replace: "if x.dim(-1) >= self.dims {",
        filter: "phi3_longrope_partial",
    },
    Mutation {
        name: "proportional_factor_ignored",
        file: "crates/mlx-rope/src/periods.rs",
        find: "let turning = number(factor)",
        replace: "let turning = number(0.0 * factor + 1.0)",
        filter: "rope_proportional",
    },
    Mutation {
        name: "llama3_blend_the_other_way",
        file: "crates/mlx-rope/src/periods.rs",
        find: "let blend = number(1.0).subtract(&smooth)?.divide(number(factor))?.add(&smooth)?;",
        replace: "let blend = smooth.divide(number(factor))?.add(number(1.0).subtract(&smooth)?)?;",
        filter: "rope_llama3",
    },
    Mutation {
        name: "base_of_one_kind_of_layers_dropped",
        file: "crates/mlx-rope/src/config.rs",
        find: "self.settings(Some(own), self.rope_local_base_freq, default_base)",
        replace: "self.settings(Some({ let mut own = own; own.rope_theta = None; own }), self.rope_local_base_freq, default_base.or(Some(10_000.0)))",
        filter: "hf_olmo3_two_bases",
    },
    // mlx-config
    Mutation {
        name: "global_and_local_rotation_exchanged",
        file: "crates/mlx-config/src/layers.rs",
        find: "if is_full(&kind) { full.clone() } else { sliding.clone() }",
        replace: "if is_full(&kind) { sliding.clone() } else { full.clone() }",
        filter: "gemma3_f32_whole",
    },
    Mutation {
        name: "full_layers_start_one_early",
        file: "crates/mlx-config/src/layers.rs",
        find: "if number.is_multiple_of(n) {",
        replace: "if (number + 1).is_multiple_of(n) {",
        filter: "gemma3_f32_whole",
    },
    Mutation {
        name: "one_full_layer_too_many",
        file: "crates/mlx-config/src/layers.rs",
        find: "if layer < n { Ok(LayerKind::Full) }",
        replace: "if layer <= n { Ok(LayerKind::Full) }",
        filter: "hf_qwen3_window",
    },
    // mlx-attn-masks
    Mutation {
        name: "window_off_by_one",
        file: "crates/mlx-attn-masks/src/causal.rs",
        find: "(query - window).saturating_add(1).max(0)",
        replace: "(query - window).max(0)",
        filter: "cache_full_window",
    },
    Mutation {
        name: "a_token_of_the_future_is_seen",
        file: "crates/mlx-attn-masks/src/causal.rs",
        find: "let end = (query + 1).min(keys - right);",
        replace: "let end = (query + 2).min(keys - right);",
        filter: "cache_mlx_lm_q8",
    },
    Mutation {
        name: "everybody_sees_everything",
        file: "crates/mlx-attn-masks/src/mask.rs",
        find: "if queries == 1 { Self::None }",
        replace: "if queries >= 1 { Self::None }",
        filter: "lille_f32",
    },
    // mlx-kvcache
    Mutation {
        name: "a_cache_forgets_its_first_token",
        file: "crates/mlx-kvcache/src/cache.rs",
        find: "let read = buffers.range(0..layout.rules().slots_read(end))?.read()?;",
        replace: "let read = buffers.range(i32::from(end > 1)..layout.rules().slots_read(end))?.read()?;",
        filter: "cache_mlx_lm_full",
    },
    Mutation {
        name: "a_cache_forgets_what_it_held_when_it_grows",
        file: "crates/mlx-kvcache/src/layout/full.rs",
        find: "Buffers::concatenate(&[held.range(0..start)?, new.zeros(more)?])?",
        replace: "Buffers::concatenate(&[held.zeros(start)?, new.zeros(more)?])?",
        filter: "past_256",
    },
    Mutation {
        name: "trim_leaves_one_token",
        file: "crates/mlx-kvcache/src/cache.rs",
        find: "self.rows.advance(-gone);",
        replace: "self.rows.advance((1 - gone).min(0));",
        filter: "cache_full",
    },
    Mutation {
        name: "ring_of_another_window",
        file: "crates/mlx-kvcache/src/layout/ring.rs",
        find: "self.max_size - self.keep",
        replace: "self.max_size - self.keep + 1",
        filter: "cache_rotating",
    },
    Mutation {
        name: "ring_overwrites_a_sink",
        file: "crates/mlx-kvcache/src/layout/ring.rs",
        find: "keep..keep + (end - ring).max(0)]",
        replace: "(keep - 1).max(0)..(keep - 1).max(0) + (end - ring).max(0)]",
        filter: "cache_rotating_keep",
    },
    Mutation {
        name: "ring_gives_up_a_token_too_early",
        file: "crates/mlx-kvcache/src/layout/ring.rs",
        find: "let from = self.start.max(now - (window - 1));",
        replace: "let from = self.start.max(now - (window - 2));",
        filter: "cache_rotating_chunks",
    },
    Mutation {
        name: "ring_mask_off_by_one",
        file: "crates/mlx-kvcache/src/layout/ring_arrays.rs",
        find: "let oldest = self.start.max(step - window + 1)",
        replace: "let oldest = self.start.max(step - window)",
        filter: "gemma3_f32",
    },
    Mutation {
        name: "sinks_are_not_seen",
        file: "crates/mlx-kvcache/src/layout/ring_arrays.rs",
        find: "show(0..(position + 1).clamp(0, keep));",
        replace: "show(0..0 * position);",
        filter: "cache_rotating_keep",
    },
    Mutation {
        name: "rewind_off_by_one",
        file: "crates/mlx-kvcache/src/cache.rs",
        find: "self.rows.advance(-gone);",
        replace: "self.rows.advance((1 - gone).min(0));",
        filter: "cache_rewind",
    },
    Mutation {
        name: "quantized_keys_read_as_values",
        file: "crates/mlx-kvcache/src/buffers.rs",
        find: "values: quantized(values, value_scales, value_biases, quantization),",
        replace: "values: quantized(keys, key_scales, key_biases, quantization),",
        filter: "cache_full_q8",
    },
    Mutation {
        name: "quantized_with_other_bits",
        file: "crates/mlx-kvcache/src/buffers.rs",
        find: "let mut arrays = Vec::with_capacity(6);",
        replace: "let quantization =
            Quantization::affine(4, quantization.group_size()).unwrap_or(quantization);
        let mut arrays = Vec::with_capacity(6);",
        filter: "cache_full_q8",
    },
    Mutation {
        name: "quantized_in_other_groups",
        file: "crates/mlx-kvcache/src/buffers.rs",
        find: "let mut arrays = Vec::with_capacity(6);",
        replace: "let quantization = Quantization::affine(quantization.bits(), 32).unwrap_or(quantization);
        let mut arrays = Vec::with_capacity(6);",
        filter: "cache_full_q8_g",
    },
    Mutation {
        name: "quantized_attention_without_scale",
        file: "crates/mlx-kvcache/src/keys_values.rs",
        find: "let queries = queries.multiply(number(scale,",
        replace: "let queries = queries.multiply(number(0.0 * scale + 1.0,",
        filter: "cache_full_q8",
    },
    Mutation {
        name: "query_heads_grouped_in_another_order",
        file: "crates/mlx-kvcache/src/keys_values.rs",
        find: "queries.reshape(&[batch, heads, group, length, dim])?",
        replace: "queries.reshape(&[batch, group, heads, length, dim])?.swap_axes(1, 2)?",
        filter: "cache_mlx_lm_q8",
    },
    Mutation {
        name: "every_layer_masked_like_the_first",
        file: "crates/mlx-kvcache/src/model_cache.rs",
        find: "layers.iter().position(|other| other.masked_like(layer));",
        replace: "layers.iter().position(|other| other.masked_like(layer) || true);",
        filter: "gemma3_f32_whole",
    },
    Mutation {
        name: "layers_with_a_longer_window",
        file: "crates/mlx-kvcache/src/layout/mod.rs",
        find: "Ring::new(window).map(Self::Ring),",
        replace: "Ring::new(window + 1).map(Self::Ring),",
        filter: "olmo3_f32_single",
    },
    Mutation {
        name: "a_file_loses_the_turn_of_a_ring",
        file: "crates/mlx-kvcache/src/layout/mod.rs",
        find: "let ring = Ring { room: slots, start, head, ..empty };",
        replace: "let ring = Ring { room: slots, start, head: head - i32::from(head > 1), ..empty };",
        filter: "save_load",
    },
    Mutation {
        name: "quantized_softmax_in_half_precision",
        file: "crates/mlx-kvcache/src/keys_values.rs",
        find: "softmax_axis(scores, -1, true)?",
        replace: "softmax_axis(scores, -1, false)?",
        filter: "cache_mlx_lm_q4",
    },
    Mutation {
        name: "hidden_scores_are_only_small",
        file: "crates/mlx-kvcache/src/keys_values.rs",
        find: "_ => f32::MIN,",
        replace: "_ => -10.0,",
        filter: "cache_full_q",
    },
    Mutation {
        name: "compacted_ring_one_short",
        file: "crates/mlx-kvcache/src/layout/ring.rs",
        find: "let from = self.start.max(now - ring);\n            (Some",
        replace: "let from = self.start.max(now - ring + 1);\n            (Some",
        filter: "cache_mlx_lm_rotating",
    },
    Mutation {
        name: "trim_into_the_sinks_keeps_the_turn",
        file: "crates/mlx-kvcache/src/layout/ring.rs",
        find: "return Ok(Self { start: keep, head: 0, ..*self });",
        replace: "return Ok(*self);",
        filter: "cache_rewind_into_sinks",
    },
    Mutation {
        name: "a_file_loses_the_window",
        file: "crates/mlx-kvcache/src/layout/full.rs",
        find: "LayoutRecord::Full { window: self.window }",
        replace: "LayoutRecord::Full { window: self.window.filter(|_| false) }",
        filter: "cache_full_window",
    },
    // mlx-layers
    Mutation {
        name: "gate_and_up_exchanged",
        file: "crates/mlx-layers/src/gated_mlp.rs",
        find: "Self::Silu => swiglu(gate, up),",
        replace: "Self::Silu => swiglu(up, gate),",
        filter: "olmo3_f32_whole",
    },
    Mutation {
        name: "fused_gate_and_up_exchanged",
        file: "crates/mlx-layers/src/gates.rs",
        find: "swiglu(&gate, &up)\n}",
        replace: "swiglu(&up, &gate)\n}",
        filter: "phi3_f32_whole",
    },
    Mutation {
        name: "gelu_without_tanh",
        file: "crates/mlx-layers/src/gates.rs",
        find: "x.multiply(number(0.5)?)?.multiply(share)",
        replace: "{
        let exact = mlx_rs::ops::erf(x.multiply(number(0.5_f32.sqrt())?)?)?.add(number(1.0)?)?;
        x.multiply(number(0.5)?)?.multiply(exact.add(share.multiply(number(0.0)?)?)?)
    }",
        filter: "gemma3_f32_whole",
    },
    Mutation {
        name: "fused_keys_and_values_exchanged",
        file: "crates/mlx-layers/src/heads.rs",
        find: "let [queries, keys, values] = cut(",
        replace: "let [queries, values, keys] = cut(",
        filter: "phi3_f32_whole",
    },
    Mutation {
        name: "keys_rotated_as_if_at_the_start",
        file: "crates/mlx-layers/src/heads.rs",
        find: "let keys = rope.rotate(keys, cache.offsets())?;",
        replace: "let keys = rope.rotate(keys, 0)?;",
        filter: "lille_f32",
    },
    Mutation {
        name: "queries_rotated_after_the_cache_moved",
        file: "crates/mlx-layers/src/heads.rs",
        find: "let queries = rope.rotate(queries, cache.offsets())?;",
        replace: "let queries = rope.rotate(queries, cache.offset() + 1)?;",
        filter: "lille_f32",
    },
    Mutation {
        name: "heads_without_norm",
        file: "crates/mlx-layers/src/attention.rs",
        find: "(Some(norm), NormOver::EachHead) => norm.forward(&heads::split(x, heads)?),",
        replace: "(Some(_), NormOver::EachHead) => heads::split(x, heads),",
        filter: "qwen3_f32_whole",
    },
    Mutation {
        name: "masks_of_the_layers_in_reverse",
        file: "crates/mlx-layers/src/stack.rs",
        find: ".zip(&masks)",
        replace: ".zip(masks.iter().rev())",
        filter: "gemma3_f32_whole",
    },
    Mutation {
        name: "bias_dropped",
        file: "crates/mlx-layers/src/linear.rs",
        find: "Some(bias) => addmm(bias, x, self.weight.t(), None, None),",
        replace: "Some(bias) => addmm(bias, x, self.weight.t(), None, Some(0.0)),",
        filter: "olmo3_bias",
    },
    Mutation {
        name: "adapter_without_scale",
        file: "crates/mlx-layers/src/adapter.rs",
        find: "Array::from_f32(self.scale).as_dtype(array.dtype())?.multiply(array)",
        replace: "Ok(array.clone())",
        filter: "lora_f32",
    },
    Mutation {
        name: "dora_measures_before_lora_is_added",
        file: "crates/mlx-layers/src/adapter.rs",
        find: "lengths(&weight.add(change)?)?",
        replace: "lengths(&weight.add(change.multiply(Array::from_f32(0.0))?)?)?",
        filter: "dora_f32",
    },
    Mutation {
        name: "bias_added_after_rounding",
        file: "crates/mlx-layers/src/linear.rs",
        find: "Some(bias) => addmm(bias, x, self.weight.t(), None, None),",
        replace: "Some(bias) => matmul(x, self.weight.t())?.add(bias),",
        filter: "olmo3_bias",
    },
    Mutation {
        name: "gelu_in_another_precision",
        file: "crates/mlx-layers/src/gates.rs",
        find: "gelu_tanh(gate)?.multiply(up)",
        replace: "gelu_tanh(&gate.as_dtype(mlx_rs::Dtype::Float32)?)?.as_dtype(gate.dtype())?.multiply(up)",
        filter: "gemma3_bf16",
    },
    Mutation {
        name: "adapter_rounded_before_its_scale",
        file: "crates/mlx-layers/src/adapter.rs",
        find: "let z = matmul(matmul(x, &self.lora_a)?, &self.lora_b)?;",
        replace: "let z = matmul(matmul(x, &self.lora_a)?, &self.lora_b)?.as_dtype(x.dtype())?;",
        filter: "lora_bias_q4",
    },
    Mutation {
        name: "heads_not_put_side_by_side_again",
        file: "crates/mlx-layers/src/heads.rs",
        find: "x.transpose_axes(&[0, 2, 1, 3])?.reshape(&[batch, length, -1])",
        replace: "x.reshape(&[batch, length, -1])",
        filter: "lille_f32",
    },
    // mlx-checkpoint
    Mutation {
        name: "adapter_with_half_its_scale",
        file: "crates/mlx-checkpoint/src/adapters/config.rs",
        find: "let config = Self { kind, rank, scale, dropout, num_layers, keys };",
        replace: "let config = Self { kind, rank, scale: scale / 2.0, dropout, num_layers, keys };",
        filter: "lora_f32",
    },
    // mlx-gemma3
    Mutation {
        name: "gemma3_scale_from_head_dim",
        file: "crates/mlx-gemma3/src/config.rs",
        find: "attention_scale: scalar.powf(-0.5) as f32,",
        replace: "attention_scale: f64::from(decoder.head_dim).powf(-0.5) as f32 + 0.0 * scalar as f32,",
        filter: "gemma3_f32_whole",
    },
    Mutation {
        name: "gemma3_embedding_scale_not_rounded",
        file: "crates/mlx-gemma3/src/config.rs",
        find: "f32::from_bits((bits + half_to_even) & 0xffff_0000)",
        replace: "f32::from_bits(bits + 0 * half_to_even)",
        filter: "gemma3_f32_whole",
    },
    Mutation {
        name: "gemma3_softcap_dropped",
        file: "crates/mlx-decoder/src/model.rs",
        find: "Some(cap) => softcap(&logits, cap),",
        replace: "Some(cap) => softcap(&logits, 1e6 + cap),",
        filter: "hf_gemma3_softcap",
    },
    Mutation {
        name: "gemma3_own_head_ignored",
        file: "crates/mlx-decoder/src/model.rs",
        find: "Some(lm_head) => lm_head.forward(hidden)?,",
        replace: "Some(_) => self.parts.model.embed_tokens.as_linear(hidden)?,",
        filter: "gemma3_untied",
    },
    Mutation {
        name: "gemma3_feeds_what_is_not_normed",
        file: "crates/mlx-decoder/src/blocks/sandwich.rs",
        find: "let fed = self.mlp.forward(&normed)?;",
        replace: "let fed = self.mlp.forward(&h)?;",
        filter: "gemma3_f32_whole",
    },
    Mutation {
        name: "gemma3_default_base_of_global_layers",
        file: "crates/mlx-gemma3/src/config.rs",
        find: "full: Some(1_000_000.0)",
        replace: "full: Some(10_000.0)",
        filter: "gemma3_defaults",
    },
    Mutation {
        name: "gemma3_default_base_of_local_layers",
        file: "crates/mlx-gemma3/src/config.rs",
        find: "sliding: Some(10_000.0)",
        replace: "sliding: Some(100_000.0)",
        filter: "gemma3_defaults",
    },
    Mutation {
        name: "gemma3_default_pattern",
        file: "crates/mlx-gemma3/src/config.rs",
        find: "?.unwrap_or(6);",
        replace: "?.unwrap_or(5);",
        filter: "gemma3_defaults",
    },
    // mlx-gemma2
    Mutation {
        name: "gemma2_scores_not_capped",
        file: "crates/mlx-kvcache/src/keys_values.rs",
        find: "scores = tanh(scores.divide(&cap)?)?.multiply(&cap)?;",
        replace: "scores = scores.divide(&cap)?.multiply(&cap)?;",
        filter: "gemma2_f32_whole",
    },
    Mutation {
        name: "gemma2_scores_not_multiplied_by_the_cap",
        file: "crates/mlx-kvcache/src/keys_values.rs",
        find: "scores = tanh(scores.divide(&cap)?)?.multiply(&cap)?;",
        replace: "scores = tanh(scores.divide(&cap)?)?;",
        filter: "gemma2_f32_whole",
    },
    Mutation {
        name: "gemma2_default_cap_of_scores",
        file: "crates/mlx-gemma2/src/config.rs",
        find: "own.attn_logit_softcapping, 50.0)",
        replace: "own.attn_logit_softcapping, 30.0)",
        filter: "gemma2_defaults",
    },
    Mutation {
        name: "gemma2_default_cap_of_logits",
        file: "crates/mlx-gemma2/src/config.rs",
        find: "own.final_logit_softcapping, 30.0)",
        replace: "own.final_logit_softcapping, 50.0)",
        filter: "gemma2_defaults",
    },
    Mutation {
        name: "gemma2_embedding_scale_of_gemma_3",
        file: "crates/mlx-gemma2/src/config.rs",
        find: "embedding_scale: f64::from(decoder.hidden_size).sqrt() as f32,",
        replace: "embedding_scale: (f64::from(decoder.hidden_size).sqrt() * 32.0).round() as f32 / 32.0,",
        filter: "gemma2_f32_whole",
    },
    Mutation {
        name: "gemma2_without_windows",
        file: "crates/mlx-gemma2/src/config.rs",
        find: "None => LayerTypes::FullEvery(2),",
        replace: "None => LayerTypes::FullEvery(1),",
        filter: "hf_gemma2_window_v4",
    },
    // mlx-olmo2
    Mutation {
        name: "olmo2_norms_before_attention",
        file: "crates/mlx-decoder/src/blocks/post_norm.rs",
        find: "let attended = self.self_attn.forward(AttentionInput { x, mask, cache })?;
        let h = x.add(self.post_attention_layernorm.forward(&attended)?)?;",
        replace: "let normed = self.post_attention_layernorm.forward(x)?;
        let h = x.add(self.self_attn.forward(AttentionInput { x: &normed, mask, cache })?)?;",
        filter: "olmo2_f32_whole",
    },
    Mutation {
        name: "olmo2_default_base",
        file: "crates/mlx-olmo2/src/config.rs",
        find: "const DEFAULT_BASE: f64 = 10_000.0;",
        replace: "const DEFAULT_BASE: f64 = 20_000.0;",
        filter: "olmo2_default_base",
    },
    // mlx-olmo3
    Mutation {
        name: "olmo3_norms_each_head",
        file: "crates/mlx-layers/src/attention.rs",
        find: "(Some(norm), NormOver::AllHeads) => heads::split(&norm.forward(x)?, heads),",
        replace: "(Some(norm), NormOver::AllHeads) => {
            let weight = norm.parameters().flatten().into_values().next().cloned();
            let weight = weight.ok_or_else(|| Exception::custom(\"no weight\"))?;
            let split = x.reshape(&[x.dim(0), x.dim(1), heads, -1])?;
            let square = split.square()?.mean_axis(-1, true)?;
            let normed = split.multiply(square.rsqrt()?)?.reshape(x.shape())?.multiply(weight)?;
            heads::split(&normed, heads)
        },",
        filter: "olmo3_f32_whole",
    },
    Mutation {
        name: "olmo3_norms_the_stream",
        file: "crates/mlx-decoder/src/blocks/post_norm.rs",
        find: "h.add(self.post_feedforward_layernorm.forward(&fed)?)",
        replace: "self.post_feedforward_layernorm.forward(&h.add(fed)?)",
        filter: "olmo3_f32_whole",
    },
    Mutation {
        name: "olmo3_full_layer_every_third",
        file: "crates/mlx-olmo3/src/config.rs",
        find: "None => LayerTypes::FullEvery(4),",
        replace: "None => LayerTypes::FullEvery(3),",
        filter: "hf_olmo3_fewer_layers",
    },
    // mlx-phi3
    Mutation {
        name: "phi3_window_ignored",
        file: "crates/mlx-phi3/src/config.rs",
        find: "LayerKind::Sliding { window });",
        replace: "LayerKind::Sliding { window: window + (1 << 20) });",
        filter: "hf_phi3_window",
    },
    Mutation {
        name: "phi3_pieces_do_not_know_what_follows",
        file: "crates/mlx-phi3/src/model.rs",
        find: "let rope = &self.rope.followed_by(following);",
        replace: "let rope = &self.rope.followed_by(0 * following);",
        filter: "hf_phi3_longrope_crossing",
    },
    Mutation {
        name: "phi3_head_is_the_table",
        file: "crates/mlx-phi3/src/model.rs",
        find: "Some(lm_head) => lm_head.forward(hidden), //",
        replace: "Some(_) => self.model.embed_tokens.as_linear(hidden), //",
        filter: "phi3_f32_whole",
    },
    Mutation {
        name: "phi3_default_base",
        file: "crates/mlx-phi3/src/config.rs",
        find: "const DEFAULT_BASE: f64 = 10_000.0;",
        replace: "const DEFAULT_BASE: f64 = 20_000.0;",
        filter: "phi3_default_base",
    },
    // mlx-qwen3
    Mutation {
        name: "qwen3_normalizes_keys_as_queries",
        file: "crates/mlx-layers/src/attention.rs",
        find: "self.num_kv_heads, &mut self.k_norm, over)?;",
        replace: "self.num_kv_heads, &mut self.q_norm, over)?;",
        filter: "qwen3_f32_whole",
    },
    Mutation {
        name: "qwen3_layers_in_reverse",
        file: "crates/mlx-config/src/windows.rs",
        find: "let kinds = LayerTypes::Listed(types).kinds(layers, self.sliding_window)?;",
        replace: "let mut kinds = LayerTypes::Listed(types).kinds(layers, self.sliding_window)?;\n                kinds.rotate_left(1);",
        filter: "hf_qwen3_layer_types",
    },
    // mlx-qwen2
    Mutation {
        name: "qwen2_adds_what_was_normed",
        file: "crates/mlx-decoder/src/blocks/pre_norm.rs",
        find: "let h = add_residual(x, &attended, self.residual_scale)?;",
        replace: "let h = add_residual(&normed, &attended, self.residual_scale)?;",
        filter: "qwen2_f32_whole",
    },
    Mutation {
        name: "qwen2_with_a_window_in_every_layer",
        file: "crates/mlx-qwen2/src/config.rs",
        find: "max_window_layers: keys.own.max_window_layers,",
        replace: "max_window_layers: keys.own.max_window_layers.map(|_| 0),",
        filter: "hf_qwen2_window_v4",
    },
    // mlx-llama
    Mutation {
        name: "llama_adds_what_was_normed",
        file: "crates/mlx-decoder/src/blocks/pre_norm.rs",
        find: "add_residual(&h, &self.mlp.forward(&normed)?, self.residual_scale)",
        replace: "add_residual(&normed, &self.mlp.forward(&normed)?, self.residual_scale)",
        filter: "llama_f32_whole",
    },
    Mutation {
        name: "llama_without_rotation",
        file: "crates/mlx-decoder/src/config.rs",
        find: "rope: layer.rope.clone(),",
        replace: "rope: None,",
        filter: "llama_f32_whole",
    },
    Mutation {
        name: "mistral_without_a_window",
        file: "crates/mlx-config/src/windows.rs",
        find: "(None, Some(window)) => LayerTypes::FullFirst(0).kinds(layers, window),",
        replace: "(None, Some(window)) => LayerTypes::FullFirst(layers).kinds(layers, window),",
        filter: "hf_mistral_window",
    },
    // mlx-granite
    Mutation {
        name: "granite_adds_attention_without_its_factor",
        file: "crates/mlx-decoder/src/blocks/pre_norm.rs",
        find: "let h = add_residual(x, &attended, self.residual_scale)?;",
        replace: "let h = add_residual(x, &attended, 1.0)?;",
        filter: "granite_f32_whole",
    },
    Mutation {
        name: "granite_with_the_root_of_its_factor_of_scores",
        file: "crates/mlx-granite/src/config.rs",
        find: "attention_scale: factor(\"attention_multiplier\", own.attention_multiplier)?,",
        replace: "attention_scale: factor(\"attention_multiplier\", own.attention_multiplier)?.sqrt(),",
        filter: "granite_f32_whole",
    },
    Mutation {
        name: "logits_are_multiplied_by_their_divisor",
        file: "crates/mlx-decoder/src/model.rs",
        find: "logits = logits.divide(number(self.logits_divisor, logits.dtype())?)?;",
        replace: "logits = logits.multiply(number(self.logits_divisor, logits.dtype())?)?;",
        filter: "granite_f32_whole",
    },
    // mlx-ministral3
    Mutation {
        name: "ministral3_without_the_factor_of_queries",
        file: "crates/mlx-ministral3/src/config.rs",
        find: "rope.with_query_scale(Some(scale))",
        replace: "rope.with_query_scale(Some(scale).filter(|_| false))",
        filter: "ministral3_f32_whole",
    },
    Mutation {
        name: "the_factor_of_queries_grows_one_token_late",
        file: "crates/mlx-rope/src/query_scale.rs",
        find: "(1 + position.max(0) / self.original) as f32",
        replace: "(1 + (position - 1).max(0) / self.original) as f32",
        filter: "ministral3_f32_whole",
    },
    Mutation {
        name: "queries_are_scaled_before_they_are_rotated",
        file: "crates/mlx-layers/src/heads.rs",
        find: "let queries = rope.scale_queries(&queries, cache.offsets())?;",
        replace: "let queries = rope.rotate(&rope.scale_queries(&rope.rotate_back(&queries, cache.offsets())?, cache.offsets())?, cache.offsets())?;",
        filter: "ministral3_bf16_whole",
    },
    // mlx-smollm3
    Mutation {
        name: "smollm3_rotates_every_layer",
        file: "crates/mlx-smollm3/src/config.rs",
        find: "layer.rope.filter(|_| rotates)",
        replace: "layer.rope.filter(|_| rotates || true)",
        filter: "smollm3_f32_whole",
    },
    Mutation {
        name: "smollm3_default_interval",
        file: "crates/mlx-smollm3/src/config.rs",
        find: "const DEFAULT_INTERVAL: i64 = 4;",
        replace: "const DEFAULT_INTERVAL: i64 = 3;",
        filter: "smollm3_default_interval",
    },
    Mutation {
        name: "smollm3_windows_in_the_other_layers",
        file: "crates/mlx-smollm3/src/config.rs",
        find: "if rotates { LayerKind::Full }",
        replace: "if !rotates { LayerKind::Full }",
        filter: "hf_smollm3_window_v4",
    },
    Mutation {
        name: "rotating_layers_counted_from_zero",
        file: "crates/mlx-config/src/layers.rs",
        find: "Ok((1..=layers).map(|number| !number.is_multiple_of(interval)).collect())",
        replace: "Ok((0..layers).map(|number| !number.is_multiple_of(interval)).collect())",
        filter: "smollm3_default_interval",
    },
    // mlx-lille-130m
    Mutation {
        name: "lille_feeds_what_is_not_normed",
        file: "crates/mlx-lille-130m/src/model.rs",
        find: "let h = self.norm.forward(x)?;",
        replace: "let h = x.clone();",
        filter: "lille_f32",
    },
    // mlx-generate
    Mutation {
        name: "nothing_is_read_again_over_the_border",
        file: "crates/mlx-generate/src/session.rs",
        find: "if self.cache.offset() > 0 && !self.all_alike(model, self.rotated_for(), length) {",
        replace: "if self.cache.offset() < 0 && !self.all_alike(model, self.rotated_for(), length) {",
        filter: "hf_phi3_longrope_crossing",
    },
    Mutation {
        name: "a_session_forgets_a_token_when_it_reads_again",
        file: "crates/mlx-generate/src/session.rs",
        find: "let tokens = all.try_index((.., start..start + behind))?;",
        replace: "let tokens = all.try_index((.., start..start + behind))?.multiply(all.lt(all.max(None)?)?)?;",
        filter: "hf_phi3_longrope_crossing",
    },
    Mutation {
        name: "greedy_takes_the_least_likely",
        file: "crates/mlx-generate/src/sampling/sampler.rs",
        find: "return argmax_axis(logprobs, -1, false)",
        replace: "return argmax_axis(logprobs.negative()?, -1, false)",
        filter: "lille_f32",
    },
    Mutation {
        name: "a_cache_is_not_told_how_long_the_sequence_gets",
        file: "crates/mlx-generate/src/session.rs",
        find: "self.cache.expect(length);",
        replace: "self.cache.expect(0 * length);",
        filter: "hf_phi3_longrope",
    },
];
