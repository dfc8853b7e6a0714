# For a tap of your own. `make formula URL=…` fills in where the source distribution lies and its checksum.
# Nobody has run it on a Mac yet; see docs/upgrading.md.
class Qlorad < Formula
  desc "Fine-tuning appliance that trains QLoRA adapters with MLX, one job at a time"
  url "@URL@"
  sha256 "@SHA256@"
  license "MIT"

  depends_on arch: :arm64
  depends_on macos: :sonoma # which the wheels of MLX ask for
  depends_on "python@3.13"

  # MLX and others come as binary wheels. In what `install` leaves, Homebrew rewrites the load commands of libraries,
  # for which those have no room; so `install` leaves the source, and `post_install` the environment.
  def install
    (libexec/"source").install Dir["*"]
    %w[qlora qlorad].each do |name|
      (bin/name).write <<~SH
        #!/bin/sh
        exec "#{opt_libexec}/venv/bin/#{name}" "$@"
      SH
      chmod 0555, bin/name
    end
  end

  # By way of `opt`, whose path stays the same from version to version: the launchd job names it.
  def post_install
    python = Formula["python@3.13"].opt_bin/"python3.13"
    venv = opt_libexec/"venv"
    source = libexec/"source"
    system python, "-m", "venv", "--clear", venv
    system venv/"bin/python", "-m", "pip", "install", "--quiet", "--constraint", source/"constraints.txt", source
  end

  def caveats
    <<~TEXT
      Have launchd keep the daemon:  qlorad install
      After each upgrade:            qlorad restart
    TEXT
  end

  test do
    ENV["QLORAD_HOME"] = testpath/"qlora"
    assert_match version.to_s, shell_output("#{bin}/qlora --version")
    assert_match "no jobs yet", shell_output("#{bin}/qlora ls 2>&1")
  end
end
