// Every network by its name, and again from what its weights say of it.
#include "models/catalogue.hpp"

#include <gtest/gtest.h>

#include <set>

#include "base/error.hpp"

namespace vesal::models {
namespace {

std::vector<std::string> entry_names(const Model& model) {
  std::vector<std::string> names;
  for (const layers::ParameterStore::Entry& entry : model.parameters().entries()) {
    names.push_back(std::visit([](const auto* e) { return e->name; }, entry));
  }
  return names;
}

TEST(Catalogue, EveryNetworkIsMadeFromItsNameAndFromItsMetadata) {
  DeviceContext context{Device{}};
  const std::vector<std::string> names = model_names();
  EXPECT_EQ(std::set(names.begin(), names.end()).size(), names.size());
  for (const std::string& name : names) {
    const std::unique_ptr<Model> model = make_model(context, name, std::nullopt);
    EXPECT_EQ(model->metadata().at("preset"), name);
    EXPECT_GT(model->parameters().count(), 0);
    const std::unique_ptr<Model> again = make_model(context, model->metadata(), std::nullopt);
    EXPECT_EQ(again->metadata(), model->metadata());
    EXPECT_EQ(entry_names(*again), entry_names(*model));
  }
}

TEST(Catalogue, ASeedFillsAndNamesWhatItFills) {
  DeviceContext context{Device{}};
  const std::unique_ptr<Model> a = make_model(context, "fusion-micro", 1),
                               b = make_model(context, "fusion-micro", 1);
  for (size_t i = 0; i < a->parameters().all().size(); ++i) {
    EXPECT_EQ(a->parameters().all()[i]->value.to_host<float>(context),
              b->parameters().all()[i]->value.to_host<float>(context));
  }
}

TEST(Catalogue, UnknownNamesAreRefusedWithTheKnownOnes) {
  DeviceContext context{Device{}};
  try {
    make_model(context, "fusion-huge", 1);
    FAIL();
  } catch (const UsageError& error) {
    EXPECT_NE(std::string(error.what()).find("found fusion-huge, expected one of fusion-micro, fusion-tiny"),
              std::string::npos)
        << error.what();
  }
  EXPECT_THROW(make_model(context, ModelMetadata{{"model", "unet"}}, 1), FormatError);
  EXPECT_THROW(make_model(context, ModelMetadata{}, 1), FormatError);
  EXPECT_THROW(make_model(context, ModelMetadata{{"model", "fusion"}}, 1), FormatError);
}

}  // namespace
}  // namespace vesal::models
