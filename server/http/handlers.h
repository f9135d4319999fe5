/* The handlers of the route table, by file. All have the same contract: read the exchange, leave a
 * reply or a generation in it. */
#ifndef RS_HTTP_HANDLERS_H
#define RS_HTTP_HANDLERS_H

struct exchange;

/* generate.c */
void handle_chat(struct exchange *x);
void handle_completions(struct exchange *x);
/* info.c */
void handle_health(struct exchange *x);
void handle_livez(struct exchange *x);
void handle_readyz(struct exchange *x);
void handle_version(struct exchange *x);
void handle_metrics(struct exchange *x);
void handle_openapi(struct exchange *x);
void handle_receipt(struct exchange *x);
void handle_attribution(struct exchange *x);
void handle_index(struct exchange *x);
void handle_lane_range(struct exchange *x);
/* page.c */
void handle_page(struct exchange *x);
/* models.c */
void handle_models(struct exchange *x);
void handle_model(struct exchange *x);
/* tokenize.c */
void handle_tokenize(struct exchange *x);
void handle_detokenize(struct exchange *x);
void handle_tokenizer_info(struct exchange *x);
/* adapters.c */
void handle_adapters_list(struct exchange *x);
void handle_adapter_get(struct exchange *x);
void handle_adapter_delete(struct exchange *x);
void handle_lora_load(struct exchange *x);
void handle_lora_unload(struct exchange *x);
/* datanets.c */
void handle_datanets_list(struct exchange *x);
void handle_datanet_get(struct exchange *x);
void handle_datanet_publish(struct exchange *x);
void handle_datanet_put(struct exchange *x);
void handle_datanet_delete(struct exchange *x);
/* files.c */
void handle_files_list(struct exchange *x);
void handle_file_upload(struct exchange *x);
void handle_file_get(struct exchange *x);
void handle_file_delete(struct exchange *x);
/* tinker_session.c */
void handle_tinker_health(struct exchange *x);
void handle_tinker_config(struct exchange *x);
void handle_tinker_dynamic_config(struct exchange *x);
void handle_tinker_telemetry(struct exchange *x);
void handle_tinker_capabilities(struct exchange *x);
void handle_tinker_create_session(struct exchange *x);
void handle_tinker_heartbeat(struct exchange *x);
void handle_tinker_finish(struct exchange *x);
void handle_tinker_get_info(struct exchange *x);
void handle_tinker_create_sampler(struct exchange *x);
void handle_tinker_sampler(struct exchange *x);
/* tinker_train.c, tinker_checkpoint.c, tinker_weights.c */
void handle_tinker_create_model(struct exchange *x);
void handle_tinker_forward_backward(struct exchange *x);
void handle_tinker_optim_step(struct exchange *x);
void handle_tinker_save(struct exchange *x);
void handle_tinker_load(struct exchange *x);
void handle_tinker_weights_info(struct exchange *x);
void handle_tinker_save_sampler(struct exchange *x);
/* tinker_sample.c, tinker_future.c */
void handle_tinker_sample(struct exchange *x);
void handle_tinker_retrieve(struct exchange *x);
/* fine_tuning.c */
void handle_tune_list(struct exchange *x);
void handle_tune_create(struct exchange *x);
void handle_tune_get(struct exchange *x);
void handle_tune_act(struct exchange *x);
/* upload.c */
void handle_upload(struct exchange *x);
void handle_publish(struct exchange *x);

#endif
