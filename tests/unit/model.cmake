# Unit tests of server/model, and the logits oracle's C side.
rs_unit_test(safetensors rs_model)
rs_unit_test(config rs_model)
rs_unit_test(rope rs_model)
rs_fuzz_target(safetensors rs_model)
rs_fuzz_target(config rs_model)
