/* Writers and the shapes of the histograms. Bucket bounds are those that operators' dashboards and
 * recording rules of vLLM already use. */
#include "server/http/metrics.h"
#include "server/base/check.h"

static const double latency_bounds[] = {0.3, 0.5, 0.8, 1,  1.5, 2,   2.5, 5,   10,   15,  20,
                                        30,  40,  50,  60, 120, 240, 480, 960, 1920, 7680};
static const double tpot_bounds[] = {0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5,
                                     0.75, 1,     2.5,  5,     7.5, 10,   20,  40,  80};
static const double ttft_bounds[] = {0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1,
                                     0.25,  0.5,   0.75, 1,    2.5,  5,    7.5,  10,
                                     20,    40,    80,   160,  640,  2560};
static const double token_bounds[] = {1,   2,   5,   10,  20,  50,  100, 200,
                                      500, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5};
static const double count_bounds[] = {1, 2, 5, 10, 20};
static const double http_bounds[] = {0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5,
                                     1,     2.5,   5,    10,    30,   60,  120};
static const double render_bounds[] = {0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1};

#define SHAPE(idx, metric, text, bounds)                                                           \
    [idx] = {.name = metric, .help = text, .bound = bounds, .bound_count = ARRAY_COUNT(bounds)}

static const struct metrics_shape shapes[METRICS_HISTOGRAM_COUNT] = {
    SHAPE(METRICS_TTFT, "vllm:time_to_first_token_seconds", "Arrival to first token.", ttft_bounds),
    SHAPE(METRICS_ITL, "vllm:inter_token_latency_seconds", "Time between tokens of a request.",
          tpot_bounds),
    SHAPE(METRICS_TPOT, "vllm:request_time_per_output_token_seconds",
          "Mean time per output token after the first, by request.", tpot_bounds),
    SHAPE(METRICS_E2E, "vllm:e2e_request_latency_seconds", "Arrival to last token.",
          latency_bounds),
    SHAPE(METRICS_QUEUE, "vllm:request_queue_time_seconds", "Arrival to admission.",
          latency_bounds),
    SHAPE(METRICS_INFERENCE, "vllm:request_inference_time_seconds", "Admission to last token.",
          latency_bounds),
    SHAPE(METRICS_PREFILL, "vllm:request_prefill_time_seconds", "Admission to first token.",
          latency_bounds),
    SHAPE(METRICS_DECODE, "vllm:request_decode_time_seconds", "First to last token.",
          latency_bounds),
    SHAPE(METRICS_PROMPT_TOKENS, "vllm:request_prompt_tokens", "Prompt tokens by request.",
          token_bounds),
    SHAPE(METRICS_GENERATION_TOKENS, "vllm:request_generation_tokens",
          "Generated tokens by request.", token_bounds),
    SHAPE(METRICS_MAX_GENERATION_TOKENS, "vllm:request_max_num_generation_tokens",
          "Longest choice by request.", token_bounds),
    SHAPE(METRICS_PARAMS_N, "vllm:request_params_n", "The parameter n.", count_bounds),
    SHAPE(METRICS_PARAMS_MAX_TOKENS, "vllm:request_params_max_tokens", "The parameter max_tokens.",
          token_bounds),
    SHAPE(METRICS_HTTP_SECONDS, "http_request_duration_seconds", "Time of HTTP requests.",
          http_bounds),
    SHAPE(METRICS_RENDER_SECONDS, "residual_metrics_render_seconds", "Time to render /metrics.",
          render_bounds)};

const struct metrics_shape *metrics_shape(enum metrics_histogram h)
{
    CHECK(h < METRICS_HISTOGRAM_COUNT);
    return &shapes[h];
}

void metrics_observe(struct metrics *m, enum metrics_histogram h, double value)
{
    const struct metrics_shape *s = &shapes[h];
    uint32_t i = 0;
    while (i < s->bound_count && value > s->bound[i])
        i++;
    metrics_add(&m->histogram[h].bucket[i], 1);
    metrics_add(&m->histogram[h].sum_micro, value > 0 ? (uint64_t)(value * 1e6) : 0);
}

void metrics_http(struct metrics *m, uint32_t route_idx, int code, double seconds)
{
    int class = code / 100;
    CHECK(route_idx <= METRICS_ROUTES_MAX);
    metrics_add(&m->http_requests[route_idx][class >= 1 && class <= 5 ? class : 0], 1);
    metrics_observe(m, METRICS_HTTP_SECONDS, seconds);
}

static double span_s(uint64_t from_ns, uint64_t to_ns)
{
    return to_ns > from_ns ? (double)(to_ns - from_ns) * 1e-9 : 0;
}

void metrics_request(struct metrics *m, const struct request *r)
{
    uint32_t longest = 0;
    uint64_t prompt = 0, output = 0;
    for (uint32_t i = 0; i < r->prompt_count; i++)
        prompt += r->prompt[i].n_ids;
    for (uint32_t i = 0; i < r->seq_count; i++) {
        uint32_t n = atomic_load_explicit(&r->seq[i].n_out, memory_order_acquire);
        longest = MAX(longest, n);
        output += n;
    }
    metrics_observe(m, METRICS_PROMPT_TOKENS, (double)prompt);
    metrics_observe(m, METRICS_GENERATION_TOKENS, (double)output);
    metrics_observe(m, METRICS_MAX_GENERATION_TOKENS, longest);
    metrics_observe(m, METRICS_PARAMS_N, r->params.n);
    metrics_observe(m, METRICS_PARAMS_MAX_TOKENS, r->params.max_tokens);
    if (r->admit_ns)
        metrics_observe(m, METRICS_QUEUE, span_s(r->arrive_ns, r->admit_ns));
    if (!r->first_token_ns || !r->finish_ns)
        return;
    metrics_observe(m, METRICS_TTFT, span_s(r->arrive_ns, r->first_token_ns));
    metrics_observe(m, METRICS_E2E, span_s(r->arrive_ns, r->finish_ns));
    metrics_observe(m, METRICS_INFERENCE, span_s(r->admit_ns, r->finish_ns));
    metrics_observe(m, METRICS_PREFILL, span_s(r->admit_ns, r->first_token_ns));
    metrics_observe(m, METRICS_DECODE, span_s(r->first_token_ns, r->finish_ns));
    if (longest > 1)
        metrics_observe(m, METRICS_TPOT, span_s(r->first_token_ns, r->finish_ns) / (longest - 1));
}
