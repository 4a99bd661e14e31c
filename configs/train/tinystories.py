# tinystories.yaml in the tutorial's form: a Hugging Face data set, read and tokenized while training.
# This file is Python and is executed. Names without a lower-case letter are constants of its own.
JOB_NAME = "tinystories"

SEQ_LEN = 2048
HIDDEN_SIZE = 4096
NUM_ATTENTION_HEAD = 32
MLP_RATIO = 8 / 3
NUM_LAYER = 32
VOCAB_SIZE = 103168

TRAIN_FOLDER = "roneneldan/TinyStories"  # or a folder of JSON lines, Parquet or text files
TOKENIZER = "internlm/internlm-7b"  # or a file or folder
data = dict(
    type="hf",
    tokenizer_path=TOKENIZER,
    seq_len=SEQ_LEN,
    micro_num=1,
    micro_bsz=1,  # a micro-batch has micro_bsz * SEQ_LEN tokens
    total_steps=50000,
    min_length=50,  # tokens of the shortest text
    train_folder=TRAIN_FOLDER,
    pack_sample_into_one=False,
)

model_type = "INTERNLM"
model = dict(
    num_layers=NUM_LAYER,
    hidden_size=HIDDEN_SIZE,
    num_attention_heads=NUM_ATTENTION_HEAD,
    mlp_ratio=MLP_RATIO,
    vocab_size=VOCAB_SIZE,
    dtype="torch.bfloat16",
)

adam = dict(lr=1e-4, weight_decay=0.01)
lr_scheduler = dict(warmup_ratio=0.01, eta_min=1e-5)
grad_scaler = dict(fp16=dict(min_scale=1), max_scale=2**24)
hybrid_zero_optimizer = dict(clip_grad_norm=1.0)

ckpt = dict(
    save_ckpt_folder="local:llm_ckpts/tinystories",
    checkpoint_every=500,
    keep=2,
)
