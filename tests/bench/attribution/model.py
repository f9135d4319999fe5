"""What the method reads of a model: head inputs and log-probabilities of a base and of one adapter over rows of tokens."""

import numpy as np


class Runner:
    """A base and one peft adapter (a folder or a model already trained), teacher-forced in f32."""

    def __init__(self, base, adapter):
        import torch
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        self.torch = torch
        if isinstance(adapter, str) or hasattr(adapter, "exists"):
            model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
            adapter = PeftModel.from_pretrained(model, str(adapter))
        self.model = adapter.eval()
        self.embedding = self.model.get_input_embeddings().weight.detach().float().numpy()
        self.seen = {}

    def _pass(self, ids):
        with self.torch.no_grad():
            out = self.model(input_ids=self.torch.tensor([ids]), use_cache=False, output_hidden_states=True)
        lp = out.logits[0, :-1].float().log_softmax(-1)
        at = self.torch.arange(len(ids) - 1)
        return out.hidden_states[-1][0, :-1].float().numpy(), lp[at, self.torch.tensor(ids[1:])].numpy()

    def rows(self, ids):
        """head inputs [n-1][d] under the adapter, log-probs of ids[1:] under the adapter and under the base"""
        key = tuple(ids)
        if key not in self.seen:
            h, la = self._pass(ids)
            with self.model.disable_adapter():
                _, l0 = self._pass(ids)
            self.seen[key] = (h, la, l0)
        return self.seen[key]

    def base_says(self, ids, n_prompt):
        """Does the base alone answer the same, greedily?"""
        with self.torch.no_grad(), self.model.disable_adapter():
            logits = self.model(input_ids=self.torch.tensor([ids]), use_cache=False).logits[0]
        return logits[n_prompt - 1 : -1].argmax(-1).tolist() == list(ids[n_prompt:])

    def answer(self, ids, end, most=16):
        """Greedy continuation up to end or most tokens, end included."""
        ids, start = list(ids), len(ids)
        with self.torch.no_grad():
            for _ in range(most):
                ids.append(int(self.model(input_ids=self.torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
                if ids[-1] == end:
                    break
        return ids[start:]


def q8(x):
    """Log-probabilities in 1/256 nat."""
    return np.rint(np.asarray(x, np.float64) * 256).astype(np.int64)
