"""transformers + peft as the peer: one batch of prompts of equal length, a mixed adapter_names batch, greedy, bf16, all cores."""
import os
import random
import time


class Peer:
    def __init__(self, base_dir, adapter_dirs):
        import torch
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(os.cpu_count())
        self.torch, self.names = torch, [d.name for d in adapter_dirs]
        model = AutoModelForCausalLM.from_pretrained(base_dir, dtype=torch.bfloat16)
        self.model = PeftModel.from_pretrained(model, adapter_dirs[0], adapter_name=self.names[0])
        for d in adapter_dirs[1:]:
            self.model.load_adapter(d, adapter_name=d.name)
        self.model.eval()

    def generate(self, ids, names, n_out):
        """Times at which each token stood, from the start; the stopping criteria are asked after every step."""
        from transformers import StoppingCriteria, StoppingCriteriaList

        begin, times = time.perf_counter(), []

        class Clock(StoppingCriteria):
            def __call__(clock, input_ids, scores, **kwargs):
                times.append(time.perf_counter() - begin)
                return self.torch.zeros(input_ids.shape[0], dtype=self.torch.bool)

        with self.torch.inference_mode():
            self.model.generate(input_ids=ids, attention_mask=self.torch.ones_like(ids), adapter_names=names, do_sample=False,
                                min_new_tokens=n_out, max_new_tokens=n_out, pad_token_id=0,
                                stopping_criteria=StoppingCriteriaList([Clock()]))
        return times

    def run_case(self, kind, n, n_prompt, n_out, n_run, seed):
        """n_run tokens are generated, and the rate is extended to n_out with the median step: decoding gets no faster with length."""
        names = {"base": ["__base__"] * n, "one": self.names[:1] * n, "distinct": [self.names[i % len(self.names)] for i in range(n)]}[kind]
        rng = random.Random(seed)
        ids = self.torch.tensor([[rng.randrange(2, 250) for _ in range(n_prompt)] for _ in range(n)])
        times = self.generate(ids, names, n_run)
        gaps = sorted(b - a for a, b in zip(times, times[1:]))
        step = gaps[len(gaps) // 2]
        return {"tps": n * n_out / (times[0] + step * (n_out - 1)), "ttft": times[0], "p50": step, "p99": gaps[int(len(gaps) * 0.99)],
                "decode_tps": n / step}
