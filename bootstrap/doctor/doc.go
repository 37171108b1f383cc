// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package doctor looks at a machine and says what is good, what is wrong and what
// is not known. It makes every check of a join (package bootstrap has them) and
// more, all side by side and each within its time, and it changes nothing: it runs
// before a join, after one, in the build of an image, and where all is broken.
//
// What is not known is neither good nor bad. A check that could not be made says
// why: nobody answered, only root may look, a tree below another root has no
// processes.
//
// It prints nothing and reads neither flags nor the environment. Its API is not
// stable yet.
package doctor
