/* Small good files that several tests of input begin with. */
#ifndef GQAKIT_TESTS_INPUT_FILES_H
#define GQAKIT_TESTS_INPUT_FILES_H

#include "damage.h"

/* config.json of a LLaMA layout: C 4, L 1, H 2, F 3, V 5, tied. */
#define INPUT_CONFIG "{\"model_type\": \"llama\", \"hidden_size\": 4, \"num_hidden_layers\": 1, \"num_attention_heads\": 2, \"intermediate_size\": 3, " \
                     "\"vocab_size\": 5, \"max_position_embeddings\": 8, \"rms_norm_eps\": 1e-5, \"tie_word_embeddings\": true}"

/* t.bin (llm.c form, 8 ids below 300) with t.bin.json and t.bin.mask, m.idx and m.bin (Megatron), r.npy (headerless), l.jsonl and z.jsonl.gz. */
void input_tokens(void);
void input_gz(const char *name, const char *text);
/* A file of the fuzzing corpora: its text, up to the NUL behind which a target takes something else. */
void input_corpus(const char *from, const char *to);
/* Opens this directory or file as a checkpoint and closes it again: the code of opening. */
enum code input_open(const char *name);

#endif
