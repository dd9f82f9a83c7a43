"The HTTP service and its page: `create_app(Settings())` in `fashion_serve.main`, or the command `fashion_serve`"
