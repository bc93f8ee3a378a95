"""llama.cpp through llama-cpp-python's C interface: log-probabilities of ids, token ids of a text, for files with or without a
vocabulary. The K/V cache is f32 and flash attention is off, so that what is left is llama.cpp's own arithmetic."""
import ctypes

import llama_cpp as lib
import numpy

MESSAGES = []


@lib.llama_log_callback
def _listen(level, text, _):
    if level >= 3:
        MESSAGES.append(text.decode(errors="replace").strip())


lib.llama_log_set(_listen, None)
lib.llama_backend_init()
F32 = 0  # enum ggml_type


class Model:
    def __init__(self, path):
        MESSAGES.clear()
        settings = lib.llama_model_default_params()
        settings.use_mmap = False
        self.model = lib.llama_model_load_from_file(path.encode(), settings)
        if not self.model:
            raise RuntimeError("llama.cpp does not load it: " + " | ".join(MESSAGES[-3:]))
        self.vocab = lib.llama_model_get_vocab(self.model)
        self.n = lib.llama_vocab_n_tokens(self.vocab)

    def close(self):
        lib.llama_model_free(self.model)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def logits(self, ids):
        """[len(ids), V] in double, after one pass over all ids."""
        settings = lib.llama_context_default_params()
        settings.n_ctx = settings.n_batch = settings.n_ubatch = max(len(ids), 32)
        settings.n_threads = settings.n_threads_batch = 1
        settings.type_k = settings.type_v = F32
        settings.flash_attn_type = 0
        settings.offload_kqv = settings.op_offload = False
        context = lib.llama_init_from_model(self.model, settings)
        if not context:
            raise RuntimeError("llama.cpp makes no context: " + " | ".join(MESSAGES[-3:]))
        batch = lib.llama_batch_init(len(ids), 0, 1)
        try:
            batch.n_tokens = len(ids)
            for i, token in enumerate(ids):
                batch.token[i] = token
                batch.pos[i] = i
                batch.n_seq_id[i] = 1
                batch.seq_id[i][0] = 0
                batch.logits[i] = 1
            if lib.llama_decode(context, batch):
                raise RuntimeError("llama_decode fails: " + " | ".join(MESSAGES[-3:]))
            all_logits = lib.llama_get_logits(context)
            return numpy.ctypeslib.as_array(all_logits, shape=(len(ids), self.n)).astype(numpy.float64)
        finally:
            lib.llama_batch_free(batch)
            lib.llama_free(context)

    def logprob(self, ids):
        """ln p(ids[i+1] | ids[0..i])"""
        rows = self.logits(ids[:-1])
        top = rows.max(-1)
        sums = top + numpy.log(numpy.exp(rows - top[:, None]).sum(-1))
        return [float(rows[i, ids[i + 1]] - sums[i]) for i in range(len(ids) - 1)]

    def greedy(self, ids, n):
        """The n likeliest ids after these, each from the whole sequence again."""
        out = list(ids)
        for _ in range(n):
            out.append(int(self.logits(out)[-1].argmax()))
        return out[len(ids):]

    def tokenize(self, text, special=True):
        if lib.llama_vocab_type(self.vocab) == 0:
            raise RuntimeError("the file has no tokenizer")  # llama.cpp would abort
        data = text.encode()
        room = (ctypes.c_int32 * (len(data) + 16))()
        n = lib.llama_tokenize(self.vocab, data, len(data), room, len(room), special, True)
        return [] if n == -2147483648 or n < 0 else list(room[:n])


