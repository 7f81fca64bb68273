"""The paper as stages (`stages/`) and graphs of them (`chains/`), and what these stand on; nothing knows of Prefect.

| stage            | takes                                 | writes                      | resumes by                |
|------------------|---------------------------------------|-----------------------------|---------------------------|
| index_images     | a source of images                    | a row for every image       | starting again            |
| extract_features | images, an encoder                    | a keyed sample of features  | finished shards of images |
| fit_codebook     | the sample                            | centroids                   | the last iteration        |
| fit_vqkd         | images, a CLIP as teacher             | a tokenizer of one's own    | the last checkpoint       |
| tokenize_images  | images, a tokenizer, maybe a codebook | a token for every patch     | finished shards of images |
| import_tokens    | images, tokens that were published    | the same, without a network | starting again            |
| store_squares    | images                                | their central squares       | finished shards of images |
| pretrain         | images, their tokens, an objective    | a backbone                  | the last checkpoint       |
| evaluate         | backbone, tokens or CLIP; labels      | scores                      | its training's checkpoint |
| report           | tokens, and what was made of them     | a page                      | starting again            |

Of all of them, a finished artifact is found and not made again. The stages that draw the demo's images and train its
CLIP lie in `stages/demo/`.
"""
