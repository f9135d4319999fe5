/* Tinker's API, so that its unmodified SDK (PyPI `tinker`, 0.38) trains and samples here:
 *
 *     tinker.ServiceClient(base_url="http://HOST:PORT", api_key="tml-...")
 *
 * The key is one of api_keys_file that begins with tml-, as the SDK demands; it comes in X-API-Key.
 *
 *   POST /api/v1/...           body -> answer
 *   client/config              {sdk_version} -> flags: no JWT, no zstd, chunks one after the other
 *                              of at most half of body_bytes_max, futures asked for one by one
 *   client/dynamic_config      the same -> flags that may change; nothing does
 *   create_session             {tags, user_metadata, sdk_version} -> {session_id}
 *   session_heartbeat          {session_id}, every 10 s; 410: it has ended
 *   sessions/ID/finish         {reason, detail} -> null
 *   create_model               {session_id, model_seq_id, base_model, lora_config {rank, seed,
 *                              train_mlp, train_attn, train_unembed}} -> future {model_id}; the
 *                              model's id is SESSION:train:SEQ, the SDK counts on it
 *   get_info                   {model_id} -> {model_data {model_name, tokenizer_id}, lora_rank}
 *   forward_backward           protobuf (train/tinker_batch.h); without a backward pass it has
 *                              forward_only -> future, protobuf: logprobs of each datum, loss:sum
 *   optim_step                 {model_id, seq_id, adam_params} -> future {metrics}
 *   save_weights               {model_id, seq_id, path, overwrite, ttl_seconds} -> future {path}:
 *                              tinker://MODEL/weights/NAME
 *   load_weights               {model_id, seq_id | session_id, model_seq_id, path, optimizer} ->
 *                              future {path, model_id}; the second form makes the model
 *   save_weights_for_sampler   {model_id, seq_id, path | sampling_session_seq_id} -> future {path}
 *                              tinker://MODEL/sampler_weights/NAME, or {sampling_session_id}
 *   weights_info               {tinker_path} -> {base_model, is_lora, lora_rank, train_*}
 *   create_sampling_session    {session_id, sampling_session_seq_id, base_model | model_path} ->
 *                              {sampling_session_id}: SESSION:sample:SEQ
 *   asample                    {sampling_session_id, seq_id, prompt {chunks}, sampling_params,
 *                              num_samples, prompt_logprobs, topk_*} -> future, protobuf, and
 *                              {sample_sequence_ids}
 *   retrieve_future            {request_id} -> the future's answer. Not yet: after 20 s 408 with
 *                              {type: try_again, queue_state}, and the SDK asks again at once. It
 *                              failed: 200 {error, category: user | server}. Unknown: 410
 *   telemetry                  accepted, and dropped
 *   GET get_server_capabilities, samplers/ID, healthz
 *
 * A call that begins work answers {request_id}, which is made of the model's or sampler's id and
 * seq_id: a repeated call (the SDK repeats on 408, 409, 429 and 5xx, for five minutes) finds what
 * the first one began. The SDK sends a model's calls in the order of seq_id and waits for each
 * {request_id}; they run in that order. Past a bound 429.
 *
 * Not here, and refused by name: losses other than those of train/tinker_loss.h; several targets a
 * position; images; Dimuon; save_weights_external; listings of runs (GET /v1/adapters has what was
 * published). LoRA on the unembedding is not trained: train_unembed, which the SDK sets unless
 * told, is left out, and the session's warning says so. Alpha is 32, as Tinker's.
 *
 * Tokenizer: get_tokenizer() of the SDK loads the base's name with transformers, which takes a
 * folder of that name in the working directory before it asks the hub. Offline, call
 * AutoTokenizer.from_pretrained("/path/of/the/base") instead.
 *
 * Where tokens come from: a PromptProvenanceSpan whose sequence_id is
 *
 *     datanet:0x<document root>/<docId>/<number of the row in its document, from 0>
 *
 * says that the datum's tokens are tokens offset .. offset + length of that row. It is checked
 * against the row's text; rows that gradients came from are the training manifest of what is
 * published, whose answers are attributed to their owners. Other sequence_ids name no document.
 *
 * A sampler's weights are an adapter, tinker/<12 digits of the session>/<model's SEQ>/<NAME>, of
 * the key that saved it, and requests of it are recorded, priced and attributed like any. Those
 * without a name live as long as the session, the last TINKER_SAMPLERS_KEPT of a model. Before the
 * first step they are the base itself, and nothing is published. */
#ifndef RS_HTTP_TINKER_H
#define RS_HTTP_TINKER_H

#include "server/http/exchange.h"

#define TINKER_SESSIONS_MAX   256u
#define TINKER_SESSIONS_KEY   32u   /* of one API key */
#define TINKER_MODELS_MAX     64u   /* of a session */
#define TINKER_SAMPLERS_MAX   1024u /* of a session */
#define TINKER_SAMPLERS_KEPT  8u
#define TINKER_FUTURES_MAX    1024u        /* of a session: under way, or not asked for yet */
#define TINKER_BYTES_MAX      (1ull << 30) /* of batches and answers, of all sessions */
#define TINKER_SESSION_IDLE_S 180u         /* without any call: it ends */
#define TINKER_WAIT_MS        20000u
#define TINKER_KEEP_MS        60000u /* an answer that was sent is kept, for a repeated question */

struct tinker;
MUST_CHECK enum status tinker_start(struct tinker **out, struct http_server *s,
                                    struct errtext *err);
/* Ends every session, answers who waits. False: work never came back; then t must stay. */
MUST_CHECK bool tinker_stop(struct tinker *t);
/* When no request can come any more. */
void tinker_free(struct tinker *t); /* NULL is fine */

struct tinker_stats {
    uint64_t sessions, models, futures; /* now */
    uint64_t datums, samples;           /* since the start */
};
void tinker_get_stats(struct tinker *t, struct tinker_stats *out);

#endif
