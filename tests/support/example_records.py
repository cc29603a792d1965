"""A valid record of each format."""

GOOD = {
    "trl": {"images": ["a.png"], "prompt": "What?", "chosen": "A cat.", "rejected": "A dog."},
    "ms-swift": {
        "messages": [{"role": "user", "content": "<image>What?"}, {"role": "assistant", "content": "A cat."}],
        "images": ["a.png"],
        "rejected_response": "A dog.",
    },
    "llama-factory": {
        "conversations": [{"from": "human", "value": "<image>What?"}],
        "chosen": {"from": "gpt", "value": "A cat."},
        "rejected": {"from": "gpt", "value": "A dog."},
        "images": ["a.png"],
    },
    "rlaif-v": {"image_path": "a.png", "question": "What?", "chosen": "A cat.", "rejected": "A dog.", "idx": "7"},
    "povid": {
        "id": "7",
        "image": "a.png",
        "conversations": [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A cat."}],
        "rejected_conversations": [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A dog."}],
    },
}
